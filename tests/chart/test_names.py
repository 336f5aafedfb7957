"""Names and labels are legal whatever the release, its namespace and the chart's version are called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.chart.rendering import Manifest, at, manifests, only, packaged

from devcluster.installation import NAMESPACE

pytestmark = pytest.mark.usefixtures("helm_program")

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
VERSIONS = {
    "build": ("0.1.0+build.5", "0.1.0+build.5"),
    "digest": ("0.1.0+1a2b3c4d5e6f", DIGEST),
    "long": (f"0.1.0-rc.1.{'x' * 40}.{'y' * 39}", f"0.1.0-{'feature-of-somebody' * 5}"),
    "cut at a hyphen": (f"0.1.0-{'a' * 38}--b", f"0.1.0-{'a' * 56}--b"),
    "words": ("1.0.0", "main branch/of (today)"),
}
RELEASES = [
    "my.release",
    "1password",
    "2024",
    "1e3",
    "true",
    "null",
    "a.b-1.c",
    "0",
    f"{'9' * 26}.{'9' * 26}",
]

LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
LABEL_KEY = r"([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
DNS_1035 = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"


def labels(document: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    """All labels and selectors of a manifest."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("labels", "matchLabels", "selector") and isinstance(value, dict):
                yield from ((name, text) for name, text in value.items() if not isinstance(text, dict))
            yield from labels(value)
    elif isinstance(document, list):
        for each in document:
            yield from labels(each)


def is_legal(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        is_definition = manifest["kind"] == "CustomResourceDefinition"
        for key, value in labels(manifest["metadata"] if is_definition else manifest):
            assert re.fullmatch(LABEL_KEY, key)
            assert isinstance(value, str), (key, value)
            assert re.fullmatch(LABEL_VALUE, value), (key, value)
        assert is_definition or re.fullmatch(DNS_1035, str(at(manifest, "metadata.name")))


@pytest.mark.parametrize(("version", "app_version"), VERSIONS.values(), ids=VERSIONS)
def test_labels_are_legal_whatever_the_version(version: str, app_version: str, tmp_path: Path) -> None:
    rendered = manifests(chart=packaged(tmp_path, version=version, app_version=app_version))
    is_legal(rendered)
    [service] = [each for each in rendered if each["kind"] == "Service"]
    shown = str(at(service, "metadata.labels").get("app.kubernetes.io/version"))  # type: ignore[union-attr]
    assert shown[:4] == app_version[:4]


@pytest.mark.parametrize(
    ("app_version", "reference"),
    [("0.1.0+build.5", ":0.1.0_build.5"), (DIGEST, f"@{DIGEST}"), ("0.1.0-rc.1", ":0.1.0-rc.1")],
    ids=["build", "digest", "pre-release"],
)
def test_an_image_of_the_charts_version_has_a_name_that_registries_take(
    app_version: str, reference: str, tmp_path: Path
) -> None:
    rendered = manifests(chart=packaged(tmp_path, version="0.1.0", app_version=app_version))
    image = str(at(only("Deployment", rendered), "spec.template.spec.containers.0.image"))
    assert image == f"ghcr.io/finetune-operator/finetune-operator{reference}"
    assert re.fullmatch(rf"[^:@]+(:{TAG}|@sha256:[0-9a-f]{{64}})", image)


@pytest.mark.parametrize("release", RELEASES)
def test_names_are_legal_whatever_the_release(release: str) -> None:
    rendered = manifests(release=release)
    is_legal(rendered)
    assert at(only("Deployment", rendered), "spec.selector.matchLabels") == {
        "app.kubernetes.io/name": "finetune-operator",
        "app.kubernetes.io/instance": release,
    }


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("finetune-operator", "finetune-operator"),
        ("ml", "ml-finetune-operator"),
        ("ml.team-a", "ml-team-a-finetune-operator"),
        ("1password", "release-1password-finetune-operator"),
    ],
)
def test_a_name_is_the_releases_as_far_as_it_can_be(release: str, name: str) -> None:
    assert at(only("Deployment", manifests(release=release)), "metadata.name") == name


@pytest.mark.parametrize("namespace", ["1234", "1e3", "true", NAMESPACE])
def test_a_namespace_is_a_text_whatever_it_is_called(namespace: str) -> None:
    some: Manifest = {"watchNamespaces": [namespace]}
    for values in ({}, some):
        for each in manifests(namespace=namespace, values=values):
            assert at(each, "metadata.namespace") in (namespace, None)
            for subject in at(each, "subjects") or []:  # type: ignore[union-attr]
                assert at(subject, "namespace") == namespace
