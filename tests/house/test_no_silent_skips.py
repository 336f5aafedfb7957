from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_pytest(directory: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_sample.py").write_text(source)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"--config-file={ROOT / 'pyproject.toml'}",
        str(directory),
        *options,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "source",
    [
        "import pytest\n@pytest.mark.skip(reason='too slow')\ndef test_it(): pass",
        "import pytest\ndef test_it(): pytest.skip('too slow')",
        "import pytest\n@pytest.mark.xfail(reason='too slow')\ndef test_it(): assert False",
        "import pytest\npytest.skip('too slow', allow_module_level=True)",
    ],
    ids=["mark", "call", "xfail", "module"],
)
def test_a_skipped_test_fails_the_run_and_says_what_was_skipped(tmp_path: Path, source: str) -> None:
    result = run_pytest(tmp_path, source)

    assert result.returncode != 0
    assert "skipped or expected to fail:" in result.stdout
    assert "too slow" in result.stdout


def test_a_skipped_test_fails_also_where_several_processes_run_them(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "import pytest\n@pytest.mark.skip\ndef test_it(): pass", "-n", "2")

    assert result.returncode == 1
    assert "skipped or expected to fail:" in result.stdout


def test_a_test_that_runs_passes(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, "def test_it(): pass").returncode == 0
