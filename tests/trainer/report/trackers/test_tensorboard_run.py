"""Event files of real runs, as TensorBoard's own reader has them, beside metrics.jsonl."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue
from tests.trainer.test_local import Listener
from tests.trainer.training.test_samples import ASKED, asking, sample_lines
from tests.trainer.training_jobs import LORA, Fields, job_of, train_here

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_manifest
from finetune_trainer.local import run_locally
from finetune_trainer.report.metrics import Answer
from finetune_trainer.storage.open import open_storage

WATCHED: Fields = {**LORA, "num_epochs": 2, "eval_first": True, "logger": {"provider": "tensorboard"}}


def shown(run: Path) -> dict[tuple[str, int], np.float32]:
    """Each number that TensorBoard plots, by its name and step; each there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = [
        ((name, event.step), np.float32(event.value))
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def written(run: Path) -> dict[tuple[str, int], np.float32]:
    """The numbers of metrics.jsonl in the precision of event files; of validations without the epoch."""
    lines: list[dict[str, JsonValue]] = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return {
        (name, int(str(line["step"]))): np.float32(value)
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and name != "step" and not (name == "epoch" and "evalLoss" in line)
    }


def test_tensorboard_shows_the_numbers_of_metrics_jsonl(tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, WATCHED))

    assert {name for name, _ in shown(tmp_path)} >= {"loss", "learningRate", "gradNorm", "evalLoss"}
    assert shown(tmp_path) == written(tmp_path)


def test_tensorboard_shows_the_answers_of_metrics_jsonl_also_of_a_run_that_was_resumed(
    tiny_model: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_here(asking(job_of(tiny_model, tmp_path, {**WATCHED, **ASKED})), stop_after=8)
    time.sleep(1.1)  # the name of an event file has the second in which it was made
    train_here(asking(job_of(tiny_model, tmp_path, {**WATCHED, **ASKED})))

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = sample_lines(tmp_path)
    assert len(lines) == 3
    for number in range(2):
        shown = {
            event.step: event.tensor_proto.string_val[0].decode()
            for event in events.Tensors(f"samples/{number + 1}/text_summary")
        }
        assert shown == {line.step: shown_as(line.samples[number]) for line in lines}


def shown_as(answer: Answer) -> str:
    """What the text plugin shows literally, below bold words."""
    asked, said = (
        "".join(f"    {line}\n" for line in text.splitlines()) for text in (answer.prompt, answer.answer)
    )
    return f"**asked**\n\n{asked}\n**answered**\n\n{said}"


def test_so_it_does_of_a_run_that_was_resumed(tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, WATCHED), stop_after=4)
    time.sleep(1.1)  # the name of an event file has the second in which it was made
    train_here(job_of(tiny_model, tmp_path, WATCHED))

    assert shown(tmp_path) == written(tmp_path)


def test_steps_that_are_trained_again_take_the_place_of_the_lost_ones(
    tiny_model: Path, tmp_path: Path
) -> None:
    train_here(job_of(tiny_model, tmp_path, WATCHED, seed=1), stop_after=4)
    shutil.rmtree(tmp_path / "snapshot-4")
    time.sleep(1.1)
    train_here(job_of(tiny_model, tmp_path, WATCHED))

    assert shown(tmp_path) == written(tmp_path)


def test_a_run_in_object_storage_is_refused_before_anything_is_read_or_written(
    s3_bucket: str, tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("model_id: absent\ntrain_path: absent.jsonl\nlogger: {provider: tensorboard}\n")

    with pytest.raises(FineTuneError) as raised:
        run_locally(read_manifest(job), storage=f"s3://{s3_bucket}/runs", devices=None, observer=Listener())

    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    assert str(raised.value).startswith("spec.logger.provider_config.log_dir: must be set where a run is in")
    assert open_storage(f"s3://{s3_bucket}/runs").files() == {}
