"""Names and labels of what the operator makes for a job."""

from __future__ import annotations

import re

from finetune_api.manifest import GROUP

JOB_UID = f"{GROUP}/job-uid"
"""The label by which everything that belongs to a job is found, pods included; its value is the FineTuneJob's
UID."""
JOB_NAME = f"{GROUP}/job-name"
"""An annotation, since a name may be longer than a label's value."""
ATTEMPT = f"{GROUP}/attempt"
"""A label of RayJobs and pods."""
UNCHECKED_SPEC = f"{GROUP}/unchecked-spec"
"""An annotation of RayJobs: a hash of those fields whose change the API server cannot refuse."""
STORAGE = f"{GROUP}/storage"
"""An annotation of RayJobs: the folder below which the run is saved, should the job's status be lost."""
ROLE = f"{GROUP}/role"
"""A label of those pods of a job that are not KubeRay's."""
PREPARE = "prepare"
"""The role of the pod that prepares a job before a cluster is asked for."""
NODE_TYPE = "ray.io/node-type"
"""KubeRay's label of pods, which tells heads and workers apart."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "finetune-operator"}

QUEUE = "kueue.x-k8s.io/queue-name"
"""The label that names a queue of Kueue's."""

QUEUES = (QUEUE, "volcano.sh/queue-name", "kai.scheduler/queue", "yunikorn.apache.org/queue")
"""Labels that name a queue, of Kueue and of schedulers."""

LONGEST_RAY_JOB = 47
"""Characters, by KubeRay's validation: it derives other names from a RayJob's."""
_UID_PART = 8
_LONGEST_ATTEMPT = 4


def child_name(job_name: str, uid: str) -> str:
    """The name of a job's children, its own for each UID.

    It is a legal DNS-1035 label whatever the FineTuneJob is called.
    """
    longest = LONGEST_RAY_JOB - 1 - _UID_PART - 1 - _LONGEST_ATTEMPT
    readable = re.sub(r"[^a-z0-9]+", "-", job_name.lower())[:longest].strip("-")
    if not readable[:1].isalpha():
        readable = f"ftj-{readable}"[:longest].rstrip("-")
    return f"{readable}-{re.sub('[^a-z0-9]', '', uid.lower())[:_UID_PART]}"


def ray_job_name(job_name: str, uid: str, attempt: int) -> str:
    """The name of the RayJob of an attempt, counted from 1."""
    return f"{child_name(job_name, uid)}-{attempt}"


def prepare_job_name(job_name: str, uid: str, attempt: int) -> str:
    """The name of the Job that prepares for an attempt, counted from 1."""
    return f"{ray_job_name(job_name, uid, attempt)}-{PREPARE}"
