"""All changes of some kinds of objects in a namespace, with the moment at which a watch saw them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubernetes.client import ApiClient, CoreV1Api, CustomObjectsApi
from kubernetes.config import new_client_from_config
from kubernetes.watch import Watch
from pydantic import JsonValue

from devcluster.objects import at

Body = dict[str, JsonValue]

KINDS = {
    "FineTuneJob": ("finetune.dev", "v1alpha1", "finetunejobs"),
    "RayJob": ("ray.io", "v1", "rayjobs"),
    "ConfigMap": None,
}


@dataclass(frozen=True)
class Sighting:
    """An object as it was at a moment."""

    time: float
    """By time.time(), in this process."""
    kind: str
    name: str
    body: Body
    deleted: bool


class Sightings:
    """What was seen so far; grows meanwhile."""

    def __init__(self) -> None:
        self._seen: list[Sighting] = []

    def add(self, sighting: Sighting) -> None:
        """One more."""
        self._seen.append(sighting)

    def of(self, kind: str, name: str | None = None) -> list[Sighting]:
        """Of a kind, or of one object, in their order."""
        return [each for each in list(self._seen) if each.kind == kind and name in (None, each.name)]

    def phases(self, name: str) -> list[str]:
        """The phases of a FineTuneJob, each once where it began."""
        phases = [
            str(at(each.body, "status", "phase"))
            for each in self.of("FineTuneJob", name)
            if at(each.body, "status", "phase")
        ]
        return [phase for phase, before in zip(phases, ["", *phases], strict=False) if phase != before]

    def first(self, kind: str, name: str, value: JsonValue, *path: str) -> Sighting | None:
        """The first time that an object held a value at a path."""
        return next((each for each in self.of(kind, name) if at(each.body, *path) == value), None)


@contextmanager
def watching(kubeconfig: Path, namespace: str) -> Iterator[Sightings]:
    """Watches FineTuneJobs, RayJobs and config maps; goes on when the API server comes back."""
    sightings, stop = Sightings(), threading.Event()
    threads = [
        threading.Thread(target=_watch, args=(kubeconfig, namespace, kind, sightings, stop), daemon=True)
        for kind in KINDS
    ]
    for thread in threads:
        thread.start()
    try:
        yield sightings
    finally:
        stop.set()


def _watch(kubeconfig: Path, namespace: str, kind: str, sightings: Sightings, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with new_client_from_config(str(kubeconfig)) as client:
                for event in Watch().stream(
                    *_listing(client, namespace, kind), timeout_seconds=30, _request_timeout=40
                ):
                    body = event["raw_object"]
                    sightings.add(
                        Sighting(
                            time.time(), kind, body["metadata"]["name"], body, event["type"] == "DELETED"
                        )
                    )
                    if stop.is_set():
                        return
        except Exception:  # noqa: BLE001 - the API server may be gone for a while
            stop.wait(0.5)


def _listing(client: ApiClient, namespace: str, kind: str) -> tuple[Callable[..., object], *tuple[str, ...]]:
    """The function that lists a kind, and its arguments."""
    resource = KINDS[kind]
    if resource is None:
        return CoreV1Api(client).list_namespaced_config_map, namespace
    group, version, plural = resource
    return CustomObjectsApi(client).list_namespaced_custom_object, group, version, namespace, plural
