"""Hints for fields of other fine-tuning tools: what the field is called here, or that it is not built.

Names are those of axolotl, LLaMA-Factory, PEFT, TRL and transformers.
"""

from __future__ import annotations

FIELDS = {
    "model_id": ("base_model", "model_name", "model_name_or_path", "pretrained_model_name_or_path"),
    "train_path": ("data_files", "dataset", "dataset_name", "datasets", "train_dataset", "train_file"),
    "valid_path": (
        "eval_dataset",
        "test_datasets",
        "val_set_size",
        "val_size",
        "valid_file",
        "validation_file",
    ),
    "context_length": (
        "cutoff_len",
        "max_length",
        "max_seq_len",
        "max_seq_length",
        "model_max_length",
        "sequence_len",
    ),
    "train_batch_size_per_device": ("micro_batch_size", "per_device_train_batch_size"),
    "eval_batch_size_per_device": ("eval_batch_size", "per_device_eval_batch_size"),
    "num_epochs": ("n_epochs", "num_train_epochs"),
    "num_devices": ("gpus", "n_gpus", "num_gpus"),
    "parallelism": ("fsdp", "fsdp_config"),
    "gradient_accumulation_steps": ("grad_accum",),
    "task": ("stage", "train_on_inputs"),
    "generation_config": ("chat_template", "template"),
    "lora_config": ("adapter", "finetuning_type", "peft_config"),
    "learning_rate": ("lr",),
    "num_warmup_steps": ("warmup_ratio",),
    "checkpoint_every_n_epochs": (
        "eval_strategy",
        "evaluation_strategy",
        "save_steps",
        "save_strategy",
        "saves_per_epoch",
    ),
    "eval_steps": ("evals_per_epoch",),
    "num_checkpoints_to_keep": ("save_total_limit",),
    "early_stopping_patience": ("early_stopping",),
    "output.push_to_hub": ("hub_model_id",),
    "resume_from": ("resume_from_checkpoint",),
    "dtype": ("bf16", "fp16", "torch_dtype"),
    "flash_attention_2": ("attn_implementation", "flash_attn"),
    "logger": ("report_to",),
    "logger.provider_config.project": ("wandb_project",),
    "lora_config.r": ("lora_r", "lora_rank", "rank"),
    "lora_config.target_modules": ("lora_target", "lora_target_linear", "lora_target_modules"),
    "lora_config.modules_to_save": ("additional_target", "lora_modules_to_save"),
}
"""For a field below `spec`, what other tools call it."""
QUANTIZATION = (
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "load_in_4bit",
    "load_in_8bit",
    "quantization_bit",
    "quantization_config",
    "quantization_method",
)
"""Other tools' fields that quantize the base model."""

HINTS = {
    **{name: f"did you mean spec.{field}?" for field, names in FIELDS.items() for name in names},
    **dict.fromkeys(QUANTIZATION, "spec.quantization: nf4 holds the base model in 4 bits"),
}
"""For a key that is not a field of a spec, what to say about it."""
