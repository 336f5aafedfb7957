"""Deleting a FineTuneJob as a person does."""

from __future__ import annotations

import time

from tests.e2e.jobs import wait_for_nothing

from devcluster.kubectl import Kubectl
from devcluster.programs import Say


def delete_and_see_everything_go(kubectl: Kubectl, namespace: str, say: Say, what: str) -> None:
    """Deletes the job `job`, and waits until nothing of it is left, for a minute at most."""
    began = time.monotonic()
    kubectl("delete", "finetunejob", "job", "--namespace", namespace, "--timeout=20s", seconds=30)
    deleted = time.monotonic() - began
    wait_for_nothing(kubectl, namespace, seconds=60)
    say(f"{what}: deleted in {deleted:.1f} s, nothing left after {time.monotonic() - began:.1f} s")
