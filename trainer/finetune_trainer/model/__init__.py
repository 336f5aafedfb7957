"""Models and adapters: where they come from, and how they are made ready to train."""
