"""Namespaces of tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from devcluster.kubectl import Kubectl
from devcluster.namespaces import ensure_restricted


@contextmanager
def temporary_namespace(kubectl: Kubectl) -> Iterator[str]:
    """A new namespace, in which only pods that fit `restricted` start; it is deleted afterwards."""
    name = f"e2e-{uuid4().hex[:8]}"
    ensure_restricted(kubectl, name)
    try:
        yield name
    finally:
        # Without waiting: a RayJob whose operator is down would hold it for ever.
        kubectl("delete", "namespace", name, "--wait=false")
