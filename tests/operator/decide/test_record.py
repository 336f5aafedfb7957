"""Progress records, as whoever can write into a config map may have written them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tests.operator.cases import RUN, Json, record_text

from finetune_api.assignment import LARGEST_RECORD
from finetune_api.paths import child
from finetune_api.status import ProgressRecord
from finetune_operator.decide.record import RecordError, is_only_further, read_record

LONGEST_ERROR = 1000
SECRET = "hunter2"
RUN_NAME = RUN.removeprefix("s3://runs/")


def refused(text: str) -> str:
    """What is said of a record that is not shown."""
    with pytest.raises(RecordError) as caught:
        read_record(text, RUN, RUN_NAME)
    assert len(str(caught.value)) <= LONGEST_ERROR
    return str(caught.value)


def said_of(text: str) -> str:
    """What is said of a record, if anything."""
    try:
        read_record(text, RUN, RUN_NAME)
    except RecordError as error:
        return str(error)
    return ""


def checkpoint(epoch: int, loss: float | None = None, **changes: JsonValue) -> Json:
    return {
        "name": f"epoch-{epoch}",
        "epoch": epoch + 1,
        "step": 2 * epoch + 2,
        "evalLoss": loss,
        "time": "2026-01-01T11:50:00Z",
        **changes,
    }


def of(*checkpoints: Json) -> str:
    return record_text({"checkpoints": list(checkpoints)})


def test_good_record_is_read() -> None:
    record = read_record(record_text({}), RUN, RUN_NAME)
    assert (record.attempt, record.plan is not None, record.progress is not None) == (1, True, True)
    assert record.checkpoints[0].path == f"{RUN}/epoch-0"


def test_smallest_record_is_read() -> None:
    assert read_record("{}", RUN, RUN_NAME) == ProgressRecord()


def test_best_and_latest_are_reckoned_anew_and_in_order() -> None:
    record = read_record(
        of(checkpoint(2, 1.5, best=False), checkpoint(0, 2.0, best=True, latest=True), checkpoint(1, 1.0)),
        RUN,
        RUN_NAME,
    )
    assert [(each.name, each.best, each.latest) for each in record.checkpoints] == [
        ("epoch-0", False, False),
        ("epoch-1", True, False),
        ("epoch-2", False, True),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"it: Invalid JSON: EOF while parsing a value at line 1 column 0"),
        ("step 3 of 10", r"it: Invalid JSON: .*"),
        ("{}}", r"it: Invalid JSON: .*"),
        ("null", r"it: Input should be an object"),
        ("[]", r"it: Input should be an object"),
        ("[" * 400_000, r"it: Invalid JSON: recursion limit exceeded .*"),
        ('{"a":' * 100_000, r"it: Invalid JSON: recursion limit exceeded .*"),
        ('"\ud800"', r"it: Input should be an object"),
        ('{"version": 2}', r"version: Input should be 1"),
        ('{"version": "1"}', r"version: Input should be 1"),
        ('{"attempt": 0}', r"attempt: .*"),
        ('{"attempt": 1001}', r"attempt: .*"),
        ('{"phase": "Succeeded"}', r"phase: Extra inputs are not permitted"),
        ('{"failure": {"class": "Bored", "message": ""}}', r"failure.class: .*"),
        ('{"checkpoints": {}}', r"checkpoints: Input should be a valid array"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_record_is_refused(text: str, words: str) -> None:
    assert re.fullmatch(words, refused(text))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({f"m{number}": 1 for number in range(33)}, r"evaluation.metrics: .* at most 32 items .*"),
        ({'1"><script>': 1}, r"evaluation.metrics: Value error, names are a letter and .*"),
        ({"accuracy": "high"}, r"evaluation.metrics.accuracy: Input should be a valid number.*"),
    ],
    ids=["too many", "wrong name", "no number"],
)
def test_metrics_that_are_none_are_refused(metrics: JsonValue, words: str) -> None:
    evaluation = {"epoch": 1, "loss": 2, "perplexity": 7.389, "metrics": metrics}

    assert re.fullmatch(words, refused(json.dumps({"evaluation": evaluation})))


def test_samples_that_are_too_many_or_too_long_are_refused() -> None:
    sample: dict[str, JsonValue] = {"prompt": "What?", "baseAnswer": "No.", "answer": "Yes."}
    record = read_record(record_text({"samples": [sample]}), RUN, RUN_NAME)
    assert [each.answer for each in record.samples] == ["Yes."]
    assert refused(record_text({"samples": [sample] * 5})).startswith("samples: List should have at most 4")
    long = refused(record_text({"samples": [{**sample, "answer": "y" * 201}]}))
    assert long == "samples.0.answer: String should have at most 200 characters"


def test_record_that_is_too_large_is_refused_unread() -> None:
    assert (
        refused("é" * (LARGEST_RECORD // 2 + 1))
        == f"it has {LARGEST_RECORD + 2} bytes; {LARGEST_RECORD} are allowed"
    )


def test_record_as_large_as_is_allowed_is_read() -> None:
    text = record_text({})
    assert read_record(text + " " * (LARGEST_RECORD - len(text)), RUN, RUN_NAME).attempt == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["epoch", "trainLoss", "gradNorm", "tokensPerSecond"])
def test_number_that_json_has_not_is_refused(field: str, value: str) -> None:
    text = record_text({"progress": {field: 12345}}).replace("12345", value)
    assert refused(text) == f"progress.{field}: Input should be a finite number"


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00", "yesterday"]
)
def test_time_that_is_none_is_refused(time: str) -> None:
    assert refused(record_text({"progress": {"lastUpdateTime": time}})).startswith(
        "progress.lastUpdateTime: "
    )


@pytest.mark.parametrize(
    "path",
    [
        "s3://runs/team/other-22222222/epoch-0",
        f"{RUN}/../other/epoch-0",
        f"{RUN}/epoch-0/",
        f"{RUN}/epoch-1",
        f"{RUN}",
        "epoch-0",
        "/etc/passwd",
        "",
    ],
)
def test_path_of_a_checkpoint_is_its_own(path: str) -> None:
    assert refused(of(checkpoint(0, path=path))) == f"checkpoints.0.path is not that of epoch-0 in {RUN_NAME}"


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("/runs", "file:///runs"),
        ("/runs/", "/runs"),
        ("s3://b/runs?region=x", "s3://b/runs"),
        ("pvc://claim/a", "/finetune/claims/claim/a"),
    ],
)
def test_path_is_shown_as_the_storage_is_spelt_by_users(storage: str, told: str) -> None:
    record = read_record(
        of(checkpoint(0, path=f"{told}/{RUN_NAME}/epoch-0")), child(storage, RUN_NAME), RUN_NAME
    )
    assert record.checkpoints[0].path == child(storage, f"{RUN_NAME}/epoch-0")


@pytest.mark.parametrize(
    "name", ["../epoch-0", "epoch--1", "epoch-0/..", "epoch-", "best", "epoch-1234567890"]
)
def test_name_of_a_checkpoint_has_its_form(name: str) -> None:
    assert refused(of(checkpoint(0, name=name, path="p"))).startswith("checkpoints.0.name: String should ")


def test_checkpoint_is_listed_once() -> None:
    assert refused(of(checkpoint(0), checkpoint(1), checkpoint(0))) == "checkpoints: epoch-0 is listed twice"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"progress": {"step": 11}}, "progress.step is beyond plan.totalSteps"),
        (
            {"progress": {"step": 2**53 + 1}},
            "progress.step: Input should be less than or equal to 9007199254740992",
        ),
        ({"progress": {"percent": 101}}, "progress.percent: Input should be less than or equal to 100"),
        ({"plan": None, "checkpoints": []}, "progress is given without a plan"),
        ({"checkpoints": [checkpoint(5)]}, "checkpoints: epoch-5 is beyond the last step"),
        *(
            ({"progress": {"epochs": epochs}}, "progress.epochs is not of the form 2/5")
            for epochs in ("", "2", "2/", "a/5", "2/5\n", "1234567/5")
        ),
    ],
)
def test_record_that_contradicts_itself_is_refused(changes: Json, words: str) -> None:
    assert refused(record_text(changes)) == words


def test_three_problems_are_named_and_not_more() -> None:
    error = refused(of(*(checkpoint(epoch, path="elsewhere") for epoch in range(5))))
    assert error.count("; ") == 2
    assert refused(json.dumps({f"a{number}": 1 for number in range(500)})).count("; ") == 2


def _everywhere(record: Json, place: Callable[[JsonValue], JsonValue]) -> list[Json]:
    """The record once for each of its values, which `place` replaces."""
    found = []
    for key, value in record.items():
        if isinstance(value, dict):
            found += [{**record, key: inner} for inner in _everywhere(value, place)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found += [{**record, key: [inner]} for inner in _everywhere(value[0], place)]
        found.append({**record, key: place(value)})
    return found


@pytest.mark.parametrize(
    "secret", [SECRET, [SECRET], {"a": SECRET}, SECRET * 1000], ids=["text", "list", "map", "long text"]
)
def test_what_a_record_holds_is_never_repeated(secret: JsonValue) -> None:
    for record in _everywhere(
        cast("Json", json.loads(record_text({"failure": {"class": "Unknown", "message": "m"}}))),
        lambda _: secret,
    ):
        words = said_of(json.dumps(record))
        assert SECRET not in words
        assert len(words) <= LONGEST_ERROR


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
FIELDS = st.sampled_from(["attempt", "plan", "progress", "evaluation", "checkpoints", "failure"])


@given(st.dictionaries(FIELDS, JSON, max_size=3))
def test_any_json_is_read_or_refused(changes: Json) -> None:
    record = {**cast("Json", json.loads(record_text({}))), **changes}
    assert len(said_of(json.dumps(record))) <= LONGEST_ERROR


PROGRESS = '{"plan": {"totalSteps": 8}, "checkpoints": [], "progress": {"step": 5}}'


@pytest.mark.parametrize(
    ("after", "only_further"),
    [
        (PROGRESS.replace("5", "6"), True),
        (PROGRESS, True),
        (PROGRESS.replace("[]", '[{"name": "epoch-0"}]'), False),
        (PROGRESS.replace('"plan"', '"finished": true, "plan"'), False),
        (PROGRESS.replace('"plan"', '"failure": {}, "plan"'), False),
        (PROGRESS.replace("progress", "else"), False),
        ("[]", False),
        ("{", False),
        ("[" * 100_000, False),
        (None, False),
    ],
)
def test_record_that_only_tells_a_later_step_is_known(after: str | None, only_further: bool) -> None:
    assert is_only_further(PROGRESS, after) is only_further


def test_first_step_is_more_than_a_later_step() -> None:
    assert not is_only_further('{"plan": {"totalSteps": 8}, "checkpoints": []}', PROGRESS)
    assert not is_only_further(None, PROGRESS)
