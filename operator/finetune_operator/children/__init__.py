"""The Kubernetes objects that are made for a job, as pure functions of its spec and the configuration."""
