"""Helm on one cluster, for what tests do as whoever installs the operator would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from devcluster.commands import run
from devcluster.kubectl import Kubectl


@dataclass(frozen=True)
class Helm:
    """Runs helm with a kubectl's kubeconfig and context."""

    program: Path
    kubectl: Kubectl

    def __call__(self, *arguments: str | Path, stdin: str | None = None, seconds: float = 120) -> str:
        """What helm writes. Raises ClusterError when it fails or takes too long."""
        chosen = [f"--kube-context={self.kubectl.context}"] if self.kubectl.context else []
        command: list[str | Path] = [
            self.program,
            f"--kubeconfig={self.kubectl.kubeconfig}",
            *chosen,
            *arguments,
        ]
        return run(command, seconds=seconds, stdin=stdin, shown=f"helm {' '.join(map(str, arguments))}")
