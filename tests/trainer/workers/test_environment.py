from __future__ import annotations

import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal
from unittest import mock

import pytest
from tests.trainer.training_jobs import LORA, spec_of

from finetune_trainer.workers.environment import (
    LONGEST_RAY_DIRECTORY,
    kills_for_memory,
    set_defaults,
    short_ray_directory,
    without_bitsandbytes,
)

LONG = "/home/someone/scratch/jobs/2026/temporary"
"""41 characters."""


def always(_directory: str) -> bool:
    return True


@pytest.mark.parametrize(
    "environment",
    [{}, {"TMPDIR": "/scratch"}, {"RAY_TMPDIR": "/scratch", "TMPDIR": LONG}, {"TMPDIR": "/" + "x" * 38}],
    ids=["none", "TMPDIR", "RAY_TMPDIR counts first", "as long as it may be"],
)
def test_a_short_directory_is_left_to_ray(environment: dict[str, str]) -> None:
    assert short_ray_directory(environment, always) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"TMPDIR": LONG},
        {"RAY_TMPDIR": LONG},
        {"RAY_TMPDIR": LONG, "TMPDIR": "/tmp"},
        {"TMPDIR": "/" + "é" * 20},
    ],
    ids=["TMPDIR", "RAY_TMPDIR", "RAY_TMPDIR counts first", "bytes are counted, not characters"],
)
def test_in_place_of_a_long_one_a_short_directory_is_taken(environment: dict[str, str]) -> None:
    assert short_ray_directory(environment, always) == "/tmp/ray"


def test_a_short_directory_must_be_writable() -> None:
    assert short_ray_directory({"TMPDIR": LONG}, lambda directory: directory == "/dev/shm") == "/dev/shm/ray"
    assert short_ray_directory({"TMPDIR": LONG}, lambda _: False) is None


def test_below_the_longest_directory_a_socket_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = "ray/session_2026-11-26_01-08-27_103297_1234567/sockets/plasma_store"
    longest = "x" * LONGEST_RAY_DIRECTORY
    monkeypatch.chdir(tmp_path)
    for directory, fits in ((longest, True), (f"{longest}x", False)):
        (tmp_path / directory / below).parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as made:
            # Linux takes 107 bytes; relative, the path is as long as an absolute one of this directory.
            if fits:
                made.bind(f"{directory}/{below}")
            else:
                with pytest.raises(OSError, match="too long"):
                    made.bind(f"{directory}/{below}")


@pytest.mark.parametrize(
    ("text", "kills"),
    [("pgpgin 12\noom_kill 3\nswap_ra 0\n", 3), ("pgpgin 12\n", None), ("oom_kill many\n", None)],
)
def test_the_kernel_counts_whom_it_ends_for_memory(tmp_path: Path, text: str, kills: int | None) -> None:
    (tmp_path / "vmstat").write_text(text)

    assert kills_for_memory(tmp_path / "vmstat") == kills


def test_without_such_a_count_nothing_is_known(tmp_path: Path) -> None:
    assert kills_for_memory(tmp_path / "vmstat") is None


def test_this_machine_has_the_count() -> None:
    assert kills_for_memory() is not None


def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_A", "mine")
    monkeypatch.delenv("FINETUNE_B", raising=False)

    set_defaults({"FINETUNE_A": "ours", "FINETUNE_B": "ours"})

    assert (os.environ["FINETUNE_A"], os.environ.pop("FINETUNE_B")) == ("mine", "ours")


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_bitsandbytes_is_there_for_a_base_in_4_bits_only(quantization: Literal["nf4"] | None) -> None:
    with mock.patch.dict(sys.modules):
        sys.modules.pop("bitsandbytes", None)
        without_bitsandbytes(spec_of(Path("model"), LORA, quantization=quantization))

        assert (find_spec("bitsandbytes") is not None) == (quantization == "nf4")


def test_bitsandbytes_stays_where_it_is_imported_already() -> None:
    imported = ModuleType("bitsandbytes")
    with mock.patch.dict(sys.modules, bitsandbytes=imported):
        without_bitsandbytes(spec_of(Path("model"), LORA))

        assert sys.modules["bitsandbytes"] is imported
