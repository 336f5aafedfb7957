"""What GitOps tools say of FineTuneJobs, by the code that they run: kstatus, Flux's CEL and Argo CD's Lua.

The statuses are those that the operator decides, in every case of its tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import yaml
from pydantic import JsonValue
from tests.chart.rendering import Manifest, at, manifests, only
from tests.operator.cases import FOLDER, Json, read_case

from devcluster.commands import run
from devcluster.installation import CHART
from finetune_api.crd import UNSEEN
from finetune_api.manifest import API_VERSION, KIND
from finetune_api.status import FineTuneJobStatus, Phase

LUA = CHART / "files/health.lua"
CEL = CHART / "files/health.yaml"
PAGE = CHART.parents[1] / "docs/gitops.md"

Judge = Callable[[Sequence[Json]], list[str]]
"""What a tool calls each of some objects."""

HEALTH = {
    # What kstatus and Flux call it, and Argo CD.
    "on its way": ("InProgress", "Progressing"),
    "suspended": ("Current", "Suspended"),
    "succeeded": ("Current", "Healthy"),
    "failed": ("Failed", "Degraded"),
}
TOOLS = {"kstatus": 0, "flux": 0, "argo": 1}
"""Each tool, and which words are its own."""


@pytest.fixture(params=list(TOOLS))
def tool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def judge(tool: str, gitops_health_program: Path, tmp_path: Path) -> Judge:
    arguments: list[str | Path] = []
    if tool == "flux":
        expressions = tmp_path / "expressions.json"
        expressions.write_text(json.dumps(yaml.safe_load(CEL.read_text())))
        arguments = [expressions]
    elif tool == "argo":
        arguments = [LUA]

    def judged(objects: Sequence[Json]) -> list[str]:
        said = json.loads(run([gitops_health_program, tool, *arguments], stdin=json.dumps(objects)))
        return [each["status"] for each in said]

    return judged


def job(status: JsonValue, generation: int = 1) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "job", "namespace": "team", "generation": generation},
        "spec": {},
        "status": status,
    }


def decided() -> dict[str, FineTuneJobStatus]:
    """The status that follows from each case, by its name, but for a job that is being deleted."""
    cases = {file.stem: read_case(file) for file in sorted(FOLDER.glob("*.yaml"))}
    return {
        name: case.decide().status
        for name, case in cases.items()
        if case.observed.job.metadata.deletion_timestamp is None
    }


def where(status: FineTuneJobStatus) -> str:
    """Where a job is, by its phase and message, without its conditions."""
    match status.phase:
        case Phase.SUCCEEDED:
            return "succeeded"
        case Phase.FAILED:
            return "failed"
        case Phase.SUSPENDED if (status.message or "").startswith("suspended;"):
            return "suspended"
        case _:
            return "on its way"


def test_every_status_that_the_operator_decides_is_read_for_what_it_is(tool: str, judge: Judge) -> None:
    statuses = decided()
    objects = [
        job(status.model_dump(mode="json", by_alias=True, exclude_none=True), status.observed_generation or 0)
        for status in statuses.values()
    ]

    found = dict(zip(statuses, judge(objects), strict=True))

    assert found == {name: HEALTH[where(status)][TOOLS[tool]] for name, status in statuses.items()}
    assert {where(status) for status in statuses.values()} == set(HEALTH)
    assert {status.phase for status in statuses.values()} == set(Phase)


def test_a_job_that_no_operator_has_seen_is_on_its_way(tool: str, judge: Judge) -> None:
    assert judge([job(UNSEEN)]) == [HEALTH["on its way"][TOOLS[tool]]]


def test_a_change_that_no_operator_has_seen_is_on_its_way(tool: str, judge: Judge) -> None:
    suspended = next(each for each in decided().values() if where(each) == "suspended")
    status = suspended.model_dump(mode="json", by_alias=True, exclude_none=True)

    assert judge([job(status, (suspended.observed_generation or 0) + 1)]) == [
        HEALTH["on its way"][TOOLS[tool]]
    ]


@pytest.mark.parametrize("tool", ["flux", "argo"], indirect=True)
def test_a_status_without_conditions_is_no_error(tool: str, judge: Judge) -> None:
    """As an operator of an earlier version may have left one."""
    assert judge([job({"observedGeneration": 1})]) == [HEALTH["on its way"][TOOLS[tool]]]


def test_reconciling_is_true_until_the_end_and_says_where_the_job_is() -> None:
    for name, status in decided().items():
        [reconciling] = [each for each in status.conditions if each.type == "Reconciling"]
        if where(status) == "on its way":
            assert (reconciling.status, reconciling.message) == ("True", status.message), name
        else:
            assert reconciling.status == "False", name


def test_argo_cd_shows_the_message(gitops_health_program: Path) -> None:
    status = decided()["training"]
    written = job(status.model_dump(mode="json", by_alias=True, exclude_none=True))

    [said] = json.loads(run([gitops_health_program, "argo", LUA], stdin=json.dumps([written])))

    assert said["message"] == status.message


def test_the_page_has_the_checks_as_they_are() -> None:
    blocks = [
        yaml.safe_load(block)
        for block in re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    ]
    script = LUA.read_text().partition("\n")[2]  # less what says where it goes

    assert [at(block, "spec.healthCheckExprs") for block in blocks if "spec" in block] == [
        [yaml.safe_load(CEL.read_text())]
    ]
    assert [block["data"] for block in blocks if "data" in block] == [
        {"resource.customizations.health.finetune.dev_FineTuneJob": script}
    ]


def test_the_chart_hands_the_checks_out() -> None:
    def checks(rendered: list[Manifest]) -> list[Manifest]:
        return [each for each in rendered if str(at(each, "metadata.name")).endswith("-health-checks")]

    assert checks(manifests()) == []
    made = only("ConfigMap", manifests(values={"gitops": {"healthChecks": True}}), "-health-checks")
    data = cast("dict[str, str]", made["data"])
    assert data["argocd.lua"].strip() == LUA.read_text().strip()
    assert data["flux.yaml"].strip() == CEL.read_text().strip()
