"""The edge to the cluster: the API client, what watches report, and the queue of jobs to reconcile."""
