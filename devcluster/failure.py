"""What keeps a cluster from being there, in words for the person who must act."""

from __future__ import annotations


class ClusterError(Exception):
    """Its first line says what went wrong and what would help; others show what was last seen."""
