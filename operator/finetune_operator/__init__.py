"""The operator: watches FineTuneJobs, makes RayJobs, and keeps statuses up to date."""
