"""Log lines as a machine and as a person read them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import kopf
import pytest
from kopf._core.actions.loggers import ObjectLogger

from finetune_operator.observed import ObjectMeta
from finetune_operator.telemetry.logs import configure, job_logger

JOB = ObjectMeta(name="quickstart", namespace="team", uid="0f0e")
BODY = kopf.Body(
    {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "quickstart", "namespace": "team", "uid": "0f0e"},
        "spec": {},
        "status": {},
    }
)

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Handlers and levels are the process's: what a test sets must not stay."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "kopf.objects", "aiohttp.access")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`configure`, without closing pytest's own handlers."""

    def begin(log_format: Literal["json", "text"], level: str = "INFO") -> None:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        configure(log_format, level)

    return begin


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Lines:
    """The lines on standard error as JSON; nothing else may be there, and nothing on standard output."""

    def read() -> list[dict[str, Any]]:
        written = capfd.readouterr()
        assert written.out == ""
        return [json.loads(line) for line in written.err.splitlines()]

    return read


def test_a_json_line_about_a_job_says_which(configured: Callable[..., None], lines: Lines) -> None:
    configured("json")

    job_logger(JOB).info("made %s %s", "RayJob", "quickstart-1")

    [line] = lines()
    assert re.match(r"\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d", line.pop("time"))
    assert line == {
        "level": "INFO",
        "logger": "finetune_operator",
        "message": "made RayJob quickstart-1",
        "namespace": "team",
        "name": "quickstart",
        "uid": "0f0e",
    }


def test_a_json_line_about_no_job_has_no_empty_fields(configured: Callable[..., None], lines: Lines) -> None:
    configured("json")

    logging.getLogger("kopf").warning("Clusterwide")

    [line] = lines()
    assert line.keys() == {"time", "level", "logger", "message"}
    assert line["logger"] == "kopf"


def test_kopfs_own_lines_about_an_object_say_which(configured: Callable[..., None], lines: Lines) -> None:
    configured("json")

    ObjectLogger(body=BODY, settings=kopf.OperatorSettings()).error("Handler failed")

    [line] = lines()
    assert line.keys() == {"time", "level", "logger", "message", "namespace", "name", "uid"}
    assert (line["namespace"], line["name"], line["uid"], line["message"]) == (
        "team",
        "quickstart",
        "0f0e",
        "Handler failed",
    )


def test_an_error_is_one_line_with_its_traceback(configured: Callable[..., None], lines: Lines) -> None:
    configured("json")
    try:
        raise ValueError("of no\nuse")
    except ValueError as error:
        job_logger(JOB).warning("looking at the job failed", exc_info=error)

    [line] = lines()
    assert "Traceback" in line["exc_info"]
    assert "of no\nuse" in line["exc_info"]
    assert line["uid"] == "0f0e"


def test_what_cannot_be_written_as_json_is_written_as_text(
    configured: Callable[..., None], lines: Lines
) -> None:
    configured("json")

    logging.getLogger("any").info("an object", extra={"thing": object()})

    [line] = lines()
    assert line["thing"].startswith("<object object")


def test_a_text_line_says_which_job_it_is_about(
    configured: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    configured("text")

    job_logger(JOB).warning("made %s", "RayJob")
    logging.getLogger("kopf").info("Clusterwide")
    ObjectLogger(body=BODY, settings=kopf.OperatorSettings()).error("Handler failed")

    first, second, third = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"\S+Z WARNING \[team/quickstart\] made RayJob", first)
    assert re.fullmatch(r"\S+Z INFO Clusterwide", second)
    assert third.endswith("ERROR [team/quickstart] Handler failed")


def test_levels_below_the_one_asked_for_are_silent(configured: Callable[..., None], lines: Lines) -> None:
    configured("json", "WARNING")

    job_logger(JOB).info("made RayJob")
    job_logger(JOB).warning("refused")

    assert [line["message"] for line in lines()] == ["refused"]


@pytest.mark.parametrize(("level", "count"), [("INFO", 1), ("DEBUG", 3)])
def test_what_every_event_looks_like_is_for_those_who_ask_for_it(
    configured: Callable[..., None], lines: Lines, level: str, count: int
) -> None:
    configured("json", level)
    chatty = ObjectLogger(body=BODY, settings=kopf.OperatorSettings())

    chatty.debug("Processing")
    chatty.info("Handler succeeded")
    chatty.warning("Handler is slow")

    assert len(lines()) == count
