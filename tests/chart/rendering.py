"""What helm makes of the chart, for tests of its templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import JsonValue

from devcluster.commands import run
from devcluster.installation import CHART, NAMESPACE, RELEASE
from devcluster.programs import find

KUBERNETES = "1.35.4"

Manifest = dict[str, JsonValue]


def helm(*arguments: str | Path, values: Mapping[str, JsonValue] | None = None) -> str:
    """What helm writes. Raises ClusterError with its error."""
    return run([find("helm", print), *arguments], stdin=json.dumps(values or {}), seconds=60)


def template(
    *options: str,
    values: Mapping[str, JsonValue] | None = None,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    chart: Path = CHART,
) -> str:
    """The text of all manifests. Raises ClusterError with helm's error."""
    versions = () if any("--kube-version" in each for each in options) else (f"--kube-version={KUBERNETES}",)
    return helm(
        "template",
        release,
        chart,
        f"--namespace={namespace}",
        "--values=-",
        *versions,
        *options,
        values=values,
    )


def manifests(
    *options: str,
    values: Mapping[str, JsonValue] | None = None,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    chart: Path = CHART,
) -> list[Manifest]:
    """All manifests, hooks of `helm test` included."""
    text = template(*options, values=values, release=release, namespace=namespace, chart=chart)
    documents = yaml.safe_load_all(text)
    return [document for document in documents if document is not None]


def packaged(directory: Path, *, version: str, app_version: str) -> Path:
    """The chart as a release of these versions."""
    written = helm(
        "package",
        CHART,
        f"--version={version}",
        f"--app-version={app_version}",
        f"--destination={directory}",
    )
    return Path(written.strip().rpartition(": ")[2])


def umbrella(directory: Path, values: Mapping[str, JsonValue], condition: str | None = None) -> Path:
    """A chart that this one is a part of, with values of its own for it."""
    part = {"name": CHART.name, "version": "*", **({"condition": condition} if condition else {})}
    chart = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [part]}
    (directory / "Chart.yaml").write_text(json.dumps(chart))
    (directory / "values.yaml").write_text(json.dumps(values))
    (directory / "charts").mkdir()
    (directory / "charts" / CHART.name).symlink_to(CHART)
    return directory


def only(kind: str, rendered: list[Manifest], suffix: str = "") -> Manifest:
    """The one of a kind, whose name ends so."""
    [found] = [
        each
        for each in rendered
        if each["kind"] == kind and str(at(each, "metadata.name")).endswith(suffix) and not is_hook(each)
    ]
    return found


def is_hook(manifest: Manifest) -> bool:
    """Whether it is made by `helm test` only."""
    annotations = at(manifest, "metadata.annotations")
    return isinstance(annotations, dict) and "helm.sh/hook" in annotations


def at(document: JsonValue, path: str) -> JsonValue:
    """What a document has at a path, `spec.containers.0.env`; None where it has nothing."""
    for part in path.split("."):
        if isinstance(document, list) and part.isdigit():
            document = document[int(part)]
        elif isinstance(document, dict):
            document = document.get(part)
        else:
            return None
    return document
