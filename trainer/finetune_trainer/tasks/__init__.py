"""What is learnt: how rows become sequences, and the loss on them. A file for each kind of task."""
