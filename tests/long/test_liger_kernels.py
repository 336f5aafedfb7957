"""Liger's kernels, run by Triton's interpreter on a CPU, change neither losses nor gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)
NAMES = ["llama", "qwen3", "mistral", "gemma3", "granite"]


@dataclass(frozen=True)
class Seen:
    """A line of `interpreted_liger`."""

    name: str
    adapters: bool
    gradients: int
    expected: float
    found: float
    difference: float


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.long.interpreted_liger", *NAMES],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [Seen(**json.loads(line)) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("adapters", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_without_them(seen: list[Seen], name: str, adapters: bool) -> None:
    [model] = [each for each in seen if each.name == name and each.adapters is adapters]

    assert model.gradients > 10
    assert model.found == pytest.approx(model.expected, abs=1e-5)
    assert model.difference < 1e-5
