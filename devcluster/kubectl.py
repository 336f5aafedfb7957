"""kubectl on one cluster, for what tests and the harness do as a person would."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from devcluster.commands import run
from devcluster.failure import ClusterError


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl with a kubeconfig and, where it names more than one cluster, a context."""

    program: Path
    kubeconfig: Path
    context: str | None = None

    def __call__(self, *arguments: str | Path, stdin: str | None = None, seconds: float = 60) -> str:
        """What kubectl writes. Raises ClusterError when it fails or takes too long."""
        return run(
            self.command(*arguments),
            seconds=seconds,
            stdin=stdin,
            shown=f"kubectl {' '.join(map(str, arguments))}",
        )

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """The words that run kubectl on this cluster."""
        chosen = [f"--context={self.context}"] if self.context else []
        return [self.program, f"--kubeconfig={self.kubeconfig}", *chosen, *arguments]

    def apply(self, manifest: dict[str, JsonValue]) -> None:
        """Applies one resource, on the server's side."""
        self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))

    def get(self, kind: str, name: str, namespace: str) -> dict[str, JsonValue] | None:
        """A resource; None when there is none."""
        found = self("get", kind, name, "--namespace", namespace, "--output=json", "--ignore-not-found")
        return dict(json.loads(found)) if found else None

    def all(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, JsonValue]]:
        """The resources of a kind, those with these labels."""
        found = json.loads(
            self("get", kind, "--namespace", namespace, f"--selector={selector}", "--output=json")
        )
        return list(found["items"])

    def story(self, namespace: str) -> str:
        """Pods, events and the last lines of every pod's log, for the error of a wait in vain."""
        parts: list[str] = []
        for title, arguments in (
            ("pods", ("get", "pods", "--output=wide")),
            ("events", ("get", "events", "--sort-by=.lastTimestamp")),
        ):
            parts += [f"{title} in {namespace}:", *self._last_lines(25, *arguments, "--namespace", namespace)]
        for pod in self.all("pods", namespace):
            metadata = pod["metadata"]
            assert isinstance(metadata, dict)
            name = str(metadata["name"])
            lines = self._last_lines(
                15, "logs", name, "--namespace", namespace, "--all-containers", "--tail=15"
            )
            parts += [f"log of {name}:", *lines]
        return "\n".join(parts)

    def _last_lines(self, count: int, *arguments: str) -> list[str]:
        try:
            return [f"  {line[:300]}" for line in self(*arguments).splitlines()[-count:]]
        except ClusterError as error:
            return [f"  {error}"]
