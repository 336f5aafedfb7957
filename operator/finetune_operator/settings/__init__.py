"""The operator's configuration, its accelerator profiles, and the page about both."""
