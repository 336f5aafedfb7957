"""What keeps a cluster from being there, in words for the person who must act."""

from __future__ import annotations


class ClusterError(Exception):
    """One line that says what is missing or went wrong and what would help; further lines show what was last seen."""
