"""The metrics: jobs by phase, the progress of those that have not ended, and a bounded number of series."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from finetune_api.status import Condition, Evaluation, FineTuneJobStatus, Phase, Plan, Progress
from finetune_operator.observed import Job, ObjectMeta
from finetune_operator.telemetry import metrics
from finetune_operator.telemetry.metrics import MOST_JOBS, JobCollector

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
UNFINISHED = [phase for phase in Phase if phase not in (Phase.SUCCEEDED, Phase.FAILED)]
PROGRESS = Progress(
    epoch=0.5,
    epochs="0/2",
    step=47,
    percent=25,
    train_loss=2.5,
    tokens_per_second=206.5,
    tokens_trained=43652,
    last_update_time=NOON,
)
PLAN = Plan(
    rows=320,
    validation_rows=32,
    tokens=18421,
    truncated_rows=0,
    context_length=512,
    effective_batch_size=16,
    steps_per_epoch=94,
    total_epochs=2,
    total_steps=188,
    checkpoint_epochs=[0, 1],
    trainable_parameters=1,
    total_parameters=2,
)
READY = Condition(type="ClusterReady", status="True", reason="Ready", message="", last_transition_time=NOON)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def job(
    name: str,
    phase: Phase | None = Phase.RUNNING,
    *,
    created: datetime | None = NOON,
    **status: Any,  # noqa: ANN401
) -> Job:
    metadata = ObjectMeta(name=name, namespace="team", uid=name, creation_timestamp=created)
    return Job(metadata=metadata, spec={"num_devices": 4}, status=FineTuneJobStatus(phase=phase, **status))


def exposed(*jobs: Job) -> Series:
    """What a scrape gives, by name and labels."""
    registry = CollectorRegistry()
    registry.register(JobCollector(lambda: jobs))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def of(series: Series, name: str) -> dict[str, float]:
    """The values of a metric by its job's name, or by phase."""
    return {
        dict(labels).get("name") or dict(labels)["phase"]: value
        for (found, labels), value in series.items()
        if found == name
    }


def test_there_is_a_series_for_every_phase_also_where_no_job_is() -> None:
    counted = of(exposed(job("a"), job("b"), job("c", Phase.FAILED)), "finetune_jobs")

    assert counted == {phase.value: 0 for phase in Phase} | {"Running": 2, "Failed": 1}


def test_a_job_that_nobody_has_reconciled_yet_is_pending() -> None:
    assert of(exposed(job("new", None)), "finetune_jobs")["Pending"] == 1


def test_a_job_that_trains_shows_how_far_it_is() -> None:
    evaluation = Evaluation(epoch=0, loss=3.5, perplexity=33.1)
    series = exposed(job("a", plan=PLAN, progress=PROGRESS, evaluation=evaluation, conditions=[READY]))

    labels = (("name", "a"), ("namespace", "team"))
    assert {name: value for (name, found), value in series.items() if found == labels} == {
        "finetune_job_step": 47,
        "finetune_job_steps": 188,
        "finetune_job_train_loss": 2.5,
        "finetune_job_eval_loss": 3.5,
        "finetune_job_tokens_per_second": 206.5,
        "finetune_job_devices": 4,
    }


def test_what_is_not_known_has_no_series() -> None:
    series = exposed(job("a", Phase.PENDING))

    assert {name for name, _ in series} == {"finetune_jobs", "finetune_job_devices"}
    assert of(series, "finetune_job_devices") == {"a": 0}


def test_a_step_without_a_loss_is_shown_without_one() -> None:
    series = exposed(job("a", progress=PROGRESS.model_copy(update={"train_loss": None})))

    assert of(series, "finetune_job_step") == {"a": 47}
    assert of(series, "finetune_job_train_loss") == {}


@pytest.mark.parametrize("devices", ["4", None, True, 4.5])
def test_a_spec_that_is_wrong_does_not_stop_a_scrape(devices: Any) -> None:  # noqa: ANN401
    wrong = job("a", conditions=[READY]).model_copy(update={"spec": {"num_devices": devices}})

    assert of(exposed(wrong, job("b")), "finetune_jobs")["Running"] == 2


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
def test_a_job_that_has_ended_has_no_series_of_its_own(phase: Phase) -> None:
    series = exposed(job("a", phase, plan=PLAN, progress=PROGRESS, conditions=[READY]))

    assert {name for name, _ in series} == {"finetune_jobs"}


def test_of_very_many_unfinished_jobs_the_ones_that_began_first_have_series() -> None:
    phases = UNFINISHED * 300
    jobs = [
        job(f"{number:03}", phases[number], created=NOON + timedelta(seconds=number), progress=PROGRESS)
        for number in range(300)
    ]

    series = exposed(*reversed(jobs))

    assert sum(of(series, "finetune_jobs").values()) == 300
    for name in ("finetune_job_step", "finetune_job_devices"):
        assert sorted(of(series, name)) == [f"{number:03}" for number in range(MOST_JOBS)]
    assert len(series) < 7 * MOST_JOBS


def test_no_number_of_jobs_that_ended_takes_the_place_of_those_that_have_not() -> None:
    ended = [
        job(f"ended {number}", Phase.SUCCEEDED, created=NOON - timedelta(days=1), progress=PROGRESS)
        for number in range(MOST_JOBS)
    ]

    assert of(exposed(*ended, job("a", progress=PROGRESS)), "finetune_job_step") == {"a": 47}


def test_a_job_without_a_time_of_creation_does_not_stop_a_scrape() -> None:
    assert of(
        exposed(job("a", created=None, progress=PROGRESS), job("b", progress=PROGRESS)), "finetune_job_step"
    ) == {"a": 47, "b": 47}


def test_two_jobs_of_one_name_at_different_times_are_one_series() -> None:
    """A watch may never report that the old one is gone, and a scrape must not have a series twice."""
    old = job("a", progress=PROGRESS)
    new = job("a", progress=PROGRESS.model_copy(update={"step": 1}), created=NOON + timedelta(hours=1))
    registry = CollectorRegistry()
    registry.register(JobCollector(lambda: [new, old]))

    lines = generate_latest(registry).decode().splitlines()

    assert [line for line in lines if line.startswith("finetune_job_step{")] == [
        'finetune_job_step{name="a",namespace="team"} 1.0'
    ]
    assert 'finetune_jobs{phase="Running"} 1.0' in lines


def test_names_with_anything_in_them_are_escaped() -> None:
    assert of(exposed(job('a"b\\c\nd', progress=PROGRESS)), "finetune_job_step") == {'a"b\\c\nd': 47}


def own() -> Iterator[Collector]:
    for value in vars(metrics).values():
        if isinstance(value, Counter | Gauge | Histogram):
            yield value
    yield JobCollector(lambda: [job("a", plan=PLAN, progress=PROGRESS)])


def test_names_and_types_follow_prometheus_conventions() -> None:
    """As `promtool check metrics` asks for them."""
    families = [family for collector in own() for family in collector.collect()]

    assert len({family.name for family in families}) == len(families) > 10
    for family in families:
        assert re.fullmatch(r"finetune(_[a-z]+)+", family.name)
        assert family.documentation.strip()
        assert not re.search(
            r"_(milliseconds|minutes|hours|ms|kilobytes|megabytes|percent|gauge|counter|histogram)(_|$)",
            family.name,
        )
        if family.type == "counter":
            assert not family.name.endswith("_total"), "the exposition adds it"
        else:
            assert not re.search(r"_(total|count|sum|bucket|info)$", family.name)


def test_counters_end_in_total_when_exposed() -> None:
    registry = CollectorRegistry()
    for collector in own():
        registry.register(collector)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", generate_latest(registry).decode(), re.MULTILINE))

    assert kinds["finetune_api_calls_total"] == "counter"
    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        name for name in kinds if name.endswith("_total")
    }


def test_labels_have_few_values() -> None:
    """No name of a job, no UID, no message: those would make a series each for ever."""
    labels = {
        label
        for value in vars(metrics).values()
        if isinstance(value, Counter | Gauge | Histogram)
        for label in value._labelnames
    }

    assert labels == {"kind", "verb", "resource", "code", "accelerator"}
