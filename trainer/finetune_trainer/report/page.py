"""A run as one page that opens without a network: a pure function of what is in its directory."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files

from jinja2 import Environment
from pydantic import JsonValue

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Checkpoint, Plan, ProgressRecord
from finetune_api.yaml_text import parse
from finetune_trainer.report.chart import NARROW, Line, chart
from finetune_trainer.report.comparison import Comparison
from finetune_trainer.report.metrics import Answer, EvaluationLine, SampleLine, StepLine, lines_in
from finetune_trainer.report.trackers.published_fields import published_fields, without_credentials
from finetune_trainer.storage.run_directory import AttemptNote, RunDirectory

_PLAN = {
    "rows": "training rows",
    "validation_rows": "validation rows",
    "tokens": "tokens of an epoch",
    "truncated_rows": "truncated rows",
    "context_length": "context length",
    "fill": "part of the sequences that is filled",
    "effective_batch_size": "rows of a step",
    "steps_per_epoch": "steps of an epoch",
    "total_epochs": "epochs",
    "total_steps": "steps",
    "trainable_parameters": "trained parameters",
    "total_parameters": "parameters",
    "gradient_checkpointing": "gradient checkpointing",
}


@dataclass(frozen=True)
class _Found:
    """What is in the directory."""

    owner: str
    spec: FineTuneJobSpec | None
    """None where the manifest is none that this version reads."""
    note: AttemptNote | None
    result: ProgressRecord | None
    checkpoints: Sequence[Checkpoint]
    steps: Sequence[StepLine]
    evaluations: Sequence[EvaluationLine]
    samples: Sequence[SampleLine]

    @property
    def plan(self) -> Plan | None:
        if self.result is not None and self.result.plan is not None:
            return self.result.plan
        return None if self.note is None else self.note.plan

    @property
    def best(self) -> Checkpoint | None:
        return next((each for each in self.checkpoints if each.best), None)


def page_of(run: RunDirectory) -> str:
    """The page of a run, finished or not, as HTML.

    It has the fields of the spec that a tracker would get, so nothing of what pods are given, and no
    credentials. Raises FineTuneError (InvalidSpec) where there is no run, and as reading the directory does.
    """
    found = _found(run)
    evaluated = found.evaluations
    state, explanation = _state(found)
    kept = {each.name: each for each in found.checkpoints}
    template = files("finetune_trainer.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            name=found.owner,
            state=state,
            explanation=explanation,
            about=_about(found),
            figures=_figures(found),
            loss=chart(
                [
                    Line("training loss", "train", [(each.step, each.loss) for each in found.steps]),
                    Line(
                        "validation loss",
                        "valid",
                        [(each.step, each.eval_loss) for each in evaluated],
                        dots=True,
                        ringed=None if found.best is None else found.best.step,
                    ),
                ],
                "training and validation loss",
            ),
            validated=bool(evaluated),
            rate=chart(
                [Line("learning rate", "train", [(each.step, each.learning_rate) for each in found.steps])],
                "learning rate",
                y_from_zero=True,
                width=NARROW,
            ),
            speed=chart(
                [
                    Line(
                        "tokens per second",
                        "train",
                        [
                            (each.step, each.tokens_per_second)
                            for each in found.steps
                            if each.tokens_per_second
                        ],
                    )
                ],
                "tokens per second",
                y_from_zero=True,
                width=NARROW,
            ),
            samples=_samples(found),
            sampled=found.samples[-1] if found.samples else None,
            sampling_seconds=round(sum(each.seconds for each in found.samples), 1),
            evaluations=evaluated,
            metric_names=sorted({name for each in evaluated for name in each.metrics}),
            has_perplexity=any(each.perplexity is not None for each in evaluated),
            kept=kept,
            unvalidated=[] if evaluated else found.checkpoints,
            warnings=_warnings(found),
            plan=_plan(found.plan),
            fields=[] if found.spec is None else _fields(published_fields(found.spec)),
            versions=[] if found.note is None else sorted(found.note.versions.items()),
            path=without_credentials(run.path),
        )
    )


def _found(run: RunDirectory) -> _Found:
    job = run.job()
    if job is None:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{run.path}: holds no run; give a run directory")
    lines = list(lines_in(run.metrics()))
    return _Found(
        owner=job.partition("\n")[0].removeprefix("# "),
        spec=_spec(job),
        note=run.attempt(),
        result=run.result(),
        checkpoints=run.checkpoints(),
        steps=[line for line in lines if isinstance(line, StepLine)],
        evaluations=[line for line in lines if isinstance(line, EvaluationLine)],
        samples=[line for line in lines if isinstance(line, SampleLine)],
    )


def _spec(job: str) -> FineTuneJobSpec | None:
    try:
        document, _ = parse(job, "job.yaml")
        spec = document.get("spec")
        return read_spec(spec) if isinstance(spec, dict) else None
    except FineTuneError:
        return None


def _state(found: _Found) -> tuple[str, str]:
    """One word, and a sentence or nothing."""
    total = found.plan.total_steps if found.plan is not None else None
    step = found.steps[-1].step if found.steps else 0
    where = f"after step {step}" + (f" of {total}" if total else "")
    if found.result is not None:
        return "finished", ""
    if found.note is not None and found.note.failure is not None:
        return "failed", f"{where}: {without_credentials(found.note.failure.message)}"
    if found.note is not None and found.note.ended is not None:
        return "stopped", f"{where}; run again to resume"
    return "unfinished", f"{where}; it goes on, or its process has ended without a word"


def _about(found: _Found) -> list[str]:
    """What was trained, in a few words each."""
    words = []
    if (spec := found.spec) is not None:
        words += [
            f"base model {without_credentials(spec.model_id)}",
            spec.trained_task.replace("_", " "),
            method(spec),
        ]
    if found.note is not None:
        devices = found.note.devices
        words += [f"{devices} device{'s' if devices > 1 else ''}", f"{found.note.began:%Y-%m-%d %H:%M} UTC"]
    return words


def method(spec: FineTuneJobSpec) -> str:
    """How the weights are trained, in a few words."""
    if spec.lora_config is None:
        return "all parameters"
    lora = f"LoRA of rank {spec.lora_config.r}"
    return lora if spec.quantization is None else f"{lora}, base in 4 bits"


def _figures(found: _Found) -> list[tuple[str, str, str]]:
    """The numbers at the top: each with its name, and what it is compared with, or nothing."""
    figures = []
    if found.evaluations:
        first, chosen = found.evaluations[0], min(found.evaluations, key=lambda each: each.eval_loss)
        before = "before training" if first.step == 0 else "first"
        figures.append(
            (
                "validation loss",
                f"{chosen.eval_loss:.3f}",
                f"{first.eval_loss:.3f} {before}" if chosen is not first else "",
            )
        )
        if chosen.perplexity is not None and first.perplexity is not None:
            note = f"{first.perplexity:.4g} {before}" if chosen is not first else ""
            figures.append(("perplexity", f"{chosen.perplexity:.4g}", note))
        figures += [(name, f"{value:.4g}", "") for name, value in chosen.metrics.items()][:4]
    if found.steps:
        last = found.steps[-1]
        figures.append(("training loss", f"{last.loss:.3f}", f"{found.steps[0].loss:.3f} in the first step"))
        total = f"of {found.plan.total_steps:,}" if found.plan is not None else ""
        figures.append(("steps", f"{last.step:,}", total))
        speeds = [each.tokens_per_second for each in found.steps if each.tokens_per_second]
        if speeds:
            figures.append(("tokens per second", f"{statistics.median(speeds):,.0f}", "median"))
        figures.append(("time", _clock(found.steps[0].time, last.time), "from the first step to the last"))
    return figures


def _clock(begin: datetime, end: datetime) -> str:
    seconds = max(0, round((end - begin).total_seconds()))
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def _samples(found: _Found) -> list[dict[str, str | None]]:
    compared = Comparison()
    for line in found.samples:
        compared.add(line)
    rows: list[dict[str, str | None]] = []
    for base, tuned in compared.pairs:
        either: Answer | None = tuned or base
        if either is not None:
            rows.append(
                {
                    "prompt": either.prompt,
                    "expected": either.expected,
                    "base": None if base is None else base.answer,
                    "tuned": None if tuned is None else tuned.answer,
                }
            )
    return rows


def _warnings(found: _Found) -> list[str]:
    before = [] if found.note is None else found.note.warnings
    during = [] if found.result is None else found.result.warnings
    return [without_credentials(each) for each in dict.fromkeys([*before, *during])]


def _plan(plan: Plan | None) -> list[tuple[str, str]]:
    if plan is None:
        return []
    values = [(words, getattr(plan, name)) for name, words in _PLAN.items()]
    return [(words, _value(value)) for words, value in values if value is not None]


def _fields(fields: dict[str, JsonValue]) -> list[tuple[str, str]]:
    return [(name, _value(value)) for name, value in fields.items()]


def _value(value: JsonValue) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False)
