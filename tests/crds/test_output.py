"""What is said of `output`, and when only that is left of a run."""

from __future__ import annotations

import pytest
from pydantic import JsonValue
from tests.crds.test_record import PLAN, checkpoints, progress

from finetune_api.manifest import read_spec
from finetune_api.output import (
    cut,
    is_about_output,
    is_delivered,
    not_merged,
    not_pushed,
    only_output_is_left,
)
from finetune_api.spec import FineTuneJobSpec, Output
from finetune_api.status import FineTuneJobStatus, ProgressRecord, PushedModel


def spec(**output: JsonValue) -> FineTuneJobSpec:
    fields: dict[str, JsonValue] = {"output": output} if output else {}
    return read_spec({"model_id": "m", "train_path": "t.jsonl", "lora_config": {}, **fields})


def pushed(name: str, *, merged: bool) -> ProgressRecord:
    model = PushedModel(repository=name, revision="a1", url=f"https://hub/{name}/tree/a1", merged=merged)
    return ProgressRecord(pushed=model)


@pytest.mark.parametrize(
    ("result", "delivered"),
    [
        (ProgressRecord(), False),
        (pushed("someone/tuned", merged=True), True),
        (pushed("someone/tuned", merged=False), False),
        (pushed("someone/other", merged=True), False),
    ],
)
def test_it_is_delivered_when_that_model_is_there(result: ProgressRecord, delivered: bool) -> None:
    assert is_delivered(Output(push_to_hub="someone/tuned", merge=True), result) is delivered


@pytest.mark.parametrize(
    ("step", "early", "saved", "left"),
    [(6, None, 3, True), (5, None, 2, False), (4, True, 2, True), (6, None, 0, False)],
)
def test_only_output_is_left_when_all_is_trained_and_saved(
    step: int, early: bool | None, saved: int, left: bool
) -> None:
    status = FineTuneJobStatus(
        plan=PLAN,
        progress=progress(step),
        checkpoints=checkpoints(*[2.0] * saved),
        stopped_early=early,
    )

    assert only_output_is_left(spec(push_to_hub="someone/tuned"), status) is left
    assert not only_output_is_left(spec(), status)
    assert not only_output_is_left(spec(push_to_hub="someone/tuned"), FineTuneJobStatus())


def test_a_warning_says_why_and_which_command_does_it_later() -> None:
    output = Output(push_to_hub="someone/tuned", merge=True, public=True)

    assert not_pushed(output, "/my runs/a", "no answer") == (
        "spec.output.push_to_hub: the model was not pushed: no answer; to push it later: finetune push"
        " '/my runs/a' someone/tuned --merge --public"
    )
    assert not_merged(output, "/runs/a", "no room").endswith(
        "not merged: no room; to merge it: finetune push /runs/a someone/tuned --merge --public"
    )
    assert all(is_about_output(each(output, "/r", "x")) for each in (not_pushed, not_merged))
    assert not is_about_output("metrics.jsonl lacks 2 lines")


def test_a_long_reason_leaves_room_for_the_command_and_all_of_it_fits_a_status() -> None:
    output = Output(push_to_hub="someone/tuned")

    assert not_pushed(output, "/runs/a", "x" * 9000).endswith("finetune push /runs/a someone/tuned")
    assert len(not_pushed(output, "/" + "r" * 9000, "x")) == len(cut("x" * 9000)) == 1024
