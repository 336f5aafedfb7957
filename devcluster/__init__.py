"""The Kubernetes cluster of `make cluster` and `make demo-cluster`, which the tests run on as well."""
