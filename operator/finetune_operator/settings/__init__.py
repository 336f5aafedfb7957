"""What whoever installs the operator decides, and the page about it."""
