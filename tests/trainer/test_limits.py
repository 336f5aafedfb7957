"""What this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune_trainer.limits import free_memory, usable_memory, usable_processors

MEBIBYTE = 2**20


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 6), ("200000 100000", 2), ("50000 100000", 1)])
def test_a_container_has_no_more_processors_than_its_quota(
    quota: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    assert usable_processors(tmp_path) == 6
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_processors(tmp_path) == count


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_has_the_memory_of_its_control_group(tmp_path: Path, file: str) -> None:
    limit = tmp_path / file
    limit.parent.mkdir(exist_ok=True)
    of_the_machine = usable_memory(tmp_path)
    limit.write_text("max\n")
    assert usable_memory(tmp_path) == of_the_machine
    limit.write_text(f"{2**62}\n")
    assert usable_memory(tmp_path) == of_the_machine
    limit.write_text(f"{64 * MEBIBYTE}\n")
    assert usable_memory(tmp_path) == 64 * MEBIBYTE


def groups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {"memory.max": f"{100 * MEBIBYTE}\n", "memory.current": f"{70 * MEBIBYTE}\n"}
V1 = {
    "memory/memory.limit_in_bytes": f"{100 * MEBIBYTE}\n",
    "memory/memory.usage_in_bytes": f"{70 * MEBIBYTE}\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 400),
        (V2, 30),
        (V2 | {"memory.stat": f"anon 5\ninactive_file {20 * MEBIBYTE}\n"}, 50),
        (V2 | {"memory.max": "max\n"}, 400),
        (V2 | {"memory.max": f"{10 * MEBIBYTE}\n"}, 0),
        (V1 | {"memory/memory.stat": f"total_inactive_file {10 * MEBIBYTE}\n"}, 40),
        ({**V1, "memory/memory.limit_in_bytes": "9223372036854771712\n"}, 400),
    ],
    ids=[
        "no groups",
        "a limit",
        "kept files are free",
        "no limit",
        "above it",
        "version 1",
        "no limit there",
    ],
)
def test_free_memory_is_what_the_system_and_the_control_group_leave(
    tmp_path: Path, files: dict[str, str], free: int
) -> None:
    system = tmp_path / "meminfo"
    system.write_text("MemTotal:       9999 kB\nMemAvailable:   409600 kB\n")

    assert free_memory(system, groups(tmp_path / "groups", files)) == free * MEBIBYTE


def test_where_nothing_is_told_free_memory_is_not_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "meminfo", tmp_path) is None


def test_this_machine_tells() -> None:
    free = free_memory()
    assert free is not None
    assert free > 0
