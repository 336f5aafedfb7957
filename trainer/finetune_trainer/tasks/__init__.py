"""Tasks: how files become rows of tokens, and the loss on them. A file for each kind."""
