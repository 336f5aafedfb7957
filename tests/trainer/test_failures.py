from __future__ import annotations

import errno
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.trainer.training_jobs import LORA, Course, in_processes, job_of

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.failures import LESS_MEMORY, failure_of
from finetune_trainer.training.job import TrainingJob
from finetune_trainer.training.loop import train


def test_what_a_person_can_act_on_stays_as_it_was_said() -> None:
    failure = failure_of(
        FineTuneError(FailureClass.INVALID_DATA, "train.jsonl:1: no", "train.jsonl:2: neither")
    )
    assert failure.failure_class is FailureClass.INVALID_DATA
    assert failure.message == "train.jsonl:1: no\ntrain.jsonl:2: neither"


def out_of_memory_on_the_cpu() -> BaseException:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        out_of_memory_on_the_cpu(),
    ],
    ids=["CUDA", "Python", "CPU"],
)
def test_without_memory_the_message_says_what_to_lower(error: BaseException) -> None:
    failure = failure_of(error)
    assert failure.failure_class is FailureClass.OUT_OF_MEMORY
    assert failure.message == f"a worker ran out of memory; {LESS_MEMORY}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG])
def test_a_disk_that_takes_nothing_is_a_storage_error(number: int) -> None:
    failure = failure_of(OSError(number, "Nothing more", "/runs/metrics.jsonl"))
    assert failure.failure_class is FailureClass.STORAGE_ERROR
    assert failure.message == "/runs/metrics.jsonl: Nothing more"


def train_and_report(job: TrainingJob, words: Path, rank: int, num_devices: int) -> None:
    """Trains; rank 0 kills itself after two steps, and the other rank writes the failure to a file."""
    try:
        train(job, Course(die_after=2).worker(rank, num_devices, []))
    except RuntimeError as error:
        words.write_text(failure_of(error).failure_class)


def test_a_worker_whose_peer_was_killed_calls_it_a_lost_node(tiny_model: Path, tmp_path: Path) -> None:
    job = job_of(tiny_model, tmp_path / "run", LORA, num_devices=2)
    ended = in_processes(2, partial(train_and_report, job, tmp_path / "words"))
    assert ended[0] == -signal.SIGKILL
    assert (tmp_path / "words").read_text() == FailureClass.NODE_LOST


def test_an_unknown_error_is_reported_with_its_own_message() -> None:
    failure = failure_of(KeyError("q_proj"))
    assert failure.failure_class is FailureClass.UNKNOWN
    assert failure.message == "KeyError: 'q_proj'"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes"),
            "bitsandbytes cannot be imported: No module named 'bitsandbytes'",
        ),
        (
            ImportError(
                "cannot import name 'x' from 'peft' (/job/peft.py)", name="peft", path="/job/peft.py"
            ),
            "peft cannot be imported: cannot import name 'x' from 'peft' (/job/peft.py)",
        ),
        (
            ImportError("bad magic number", name="peft", path="/job/peft.py"),
            "peft cannot be imported: bad magic number; it was read from /job/peft.py",
        ),
        (
            ImportError("libcudart.so.12: no such file"),
            "a library cannot be imported: libcudart.so.12: no such file",
        ),
    ],
    ids=["missing", "another-one", "path", "shared-object"],
)
def test_a_library_that_cannot_be_imported_is_named(error: ImportError, message: str) -> None:
    failure = failure_of(error)
    assert failure.failure_class is FailureClass.UNKNOWN
    assert failure.message == (
        f"{message}; install what is missing, or rename a file of yours that has a library's name"
    )


def test_words_without_end_are_cut() -> None:
    assert len(failure_of(ValueError("x" * 100_000)).message) == 8192
