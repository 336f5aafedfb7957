"""Values as they are met: sections with nothing in them, and the chart as a part of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.chart.rendering import Manifest, at, manifests, only, template, umbrella

from devcluster.failure import ClusterError
from devcluster.installation import CHART

pytestmark = pytest.mark.usefixtures("helm_program")

DEFAULTS: dict[str, JsonValue] = yaml.safe_load((CHART / "values.yaml").read_text())
PARTS = [("metrics", "serviceMonitor"), ("metrics", "alerts"), ("metrics", "dashboard")]
FIELDS = [
    (section, name)
    for section in (
        "image",
        "trainerImage",
        "crds",
        "kuberay",
        "rbac",
        "serviceAccount",
        "networkPolicy",
        "test",
    )
    for name in dict(DEFAULTS[section])  # type: ignore[arg-type]
]
"""Fields of sections that are all there or not."""


@pytest.fixture(scope="module")
def default() -> str:
    return template()


@pytest.mark.parametrize("section", DEFAULTS)
def test_a_section_with_nothing_but_comments_is_its_defaults(section: str, default: str) -> None:
    assert template(values={section: None}) == default


@pytest.mark.parametrize(("section", "part"), [*PARTS, *FIELDS], ids="-".join)
def test_a_part_of_a_section_with_nothing_in_it_is_its_default(section: str, part: str, default: str) -> None:
    assert template(values={section: {part: None}}) == default


def test_all_sections_at_once_may_have_nothing_in_them(default: str) -> None:
    assert template(values=dict.fromkeys(DEFAULTS)) == default


def test_what_is_said_of_a_section_beside_one_that_is_empty_counts() -> None:
    rendered = manifests(
        values={"metrics": {"alerts": None, "serviceMonitor": {"enabled": True}}, "crds": None}
    )
    kinds = {each["kind"] for each in rendered}
    assert "ServiceMonitor" in kinds
    assert "PrometheusRule" not in kinds
    assert "CustomResourceDefinition" in kinds
    off: Manifest = {"crds": {"install": False}, "networkPolicy": {"enabled": False, "metricsFrom": None}}
    assert {each["kind"] for each in manifests(values=off)}.isdisjoint(
        {"CustomResourceDefinition", "NetworkPolicy"}
    )


def test_a_limit_can_be_taken_away() -> None:
    deployment = only("Deployment", manifests(values={"resources": {"limits": None}}))
    assert at(deployment, "spec.template.spec.containers.0.resources").keys() == {"requests"}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["enabled", "global"])
def test_what_umbrella_charts_give_to_all_of_their_parts_is_no_mistake(name: str, default: str) -> None:
    given: dict[str, JsonValue] = {
        "enabled": True,
        "global": {"imageRegistry": "registry.test", "a": {"b": 1}},
    }
    assert template(values={name: given[name]}) == default


def ours(rendered: list[Manifest]) -> list[Manifest]:
    return sorted(rendered, key=json.dumps)


def test_as_a_part_of_another_chart_it_is_the_same(tmp_path: Path) -> None:
    chart = umbrella(tmp_path, {"finetune-operator": {"enabled": True}, "global": {"storageClass": "fast"}})
    assert ours(manifests(chart=chart)) == ours(manifests())


def test_an_umbrella_chart_says_whether_it_is_a_part(tmp_path: Path) -> None:
    chart = umbrella(tmp_path, {"finetune-operator": {"enabled": False}}, "finetune-operator.enabled")
    assert manifests(chart=chart) == []
    assert manifests(chart=chart, values={"finetune-operator": {"enabled": True}})


def test_without_a_condition_nothing_is_switched_off_and_that_is_said() -> None:
    with pytest.raises(ClusterError, match=r"enabled: is false.*condition: finetune-operator\.enabled"):
        template(values={"enabled": False})


def test_a_section_may_be_empty_in_an_umbrella_chart_too(tmp_path: Path) -> None:
    chart = umbrella(tmp_path, {"finetune-operator": dict.fromkeys(DEFAULTS)})
    assert ours(manifests(chart=chart)) == ours(manifests())


def contexts(rendered: list[Manifest]) -> list[JsonValue]:
    """As whom the operator's pod and that of `helm test` run."""
    deployment = only("Deployment", rendered)
    [pod] = [each for each in rendered if each["kind"] == "Pod"]
    return [at(deployment, "spec.template.spec.securityContext"), at(pod, "spec.securityContext")]


SAFE: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
ANY_USER: Manifest = {"podSecurityContext": {"runAsUser": None, "runAsGroup": None}}


def test_the_operator_runs_as_its_images_user() -> None:
    assert contexts(manifests()) == [{**SAFE, "runAsUser": 65532, "runAsGroup": 65532}] * 2


def test_whom_the_operator_runs_as_can_be_left_to_the_cluster(tmp_path: Path) -> None:
    assert contexts(manifests(values=ANY_USER)) == [SAFE] * 2
    chart = umbrella(tmp_path, {"finetune-operator": ANY_USER})
    assert contexts(manifests(chart=chart)) == [SAFE] * 2


def test_whom_the_operator_runs_as_can_be_said() -> None:
    said: Manifest = {
        "runAsUser": 1000650000,
        "runAsGroup": 0,
        "fsGroup": 1000650000,
        "supplementalGroups": [5],
    }
    assert contexts(manifests(values={"podSecurityContext": said})) == [{**SAFE, **said}] * 2


def test_the_operator_is_never_root() -> None:
    with pytest.raises(ClusterError, match=r"/podSecurityContext/runAsUser.*minimum: got 0, want 1"):
        template(values={"podSecurityContext": {"runAsUser": 0}})
