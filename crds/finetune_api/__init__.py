"""The FineTuneJob API: spec and status models, the numbers of a run, the manifest reader and the CRD."""
