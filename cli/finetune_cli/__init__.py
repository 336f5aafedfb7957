"""The command `finetune`: run, validate, convert, plan, crd and merge."""
