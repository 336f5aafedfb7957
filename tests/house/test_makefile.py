from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TOO_OLD = f"""#!/bin/sh
case "$1" in
  --version) echo Python 3.10.14 ;;
  *) exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 14); $2" ;;
esac
"""
WITHOUT_VENV = """#!/bin/sh
case "$2" in *venv*) echo ModuleNotFoundError >&2; exit 1 ;; esac
"""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, r"\./python not found: install Python 3\.11 or newer.*"),
        (TOO_OLD, r"Python 3\.10\.14 is too old: name Python 3\.11 or newer.*"),
        (WITHOUT_VENV, r"\./python lacks venv: install it.*"),
    ],
    ids=["missing", "too old", "without venv"],
)
def test_an_unfit_python_is_refused_in_one_line(tmp_path: Path, script: str | None, message: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "locks", tmp_path / "locks")
    if script is not None:
        (tmp_path / "python").write_text(script)
        (tmp_path / "python").chmod(0o755)

    command = ["make", "--silent", "test", "PYTHON=./python"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert result.returncode != 0
    assert result.stdout == ""
    [line, makes_own] = result.stderr.splitlines()
    assert re.fullmatch(message, line)
    assert "Error 1" in makes_own
    assert not (tmp_path / ".venv").exists()


def test_help_explains_every_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)

    shown = subprocess.run(["make", "--silent"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert set(re.findall(r"^make ([a-z0-9-]+) +\S", shown, re.MULTILINE)) == set(phony.split()) - {
        "demo-cost"
    }


LOADED = """
import sys
import pytest
code = pytest.main(sys.argv[1:])
print("loaded:", *sorted({"ray", "torch", "transformers"} & sys.modules.keys()))
sys.exit(code)
"""


def test_the_fast_tests_load_neither_torch_nor_ray_and_start_no_server() -> None:
    # What the make was given that runs this test is not for this one.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "ARGS")}
    shown = subprocess.run(
        ["make", "--dry-run", "test-fast"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [command] = [line for line in shown.splitlines() if " -m pytest " in line]
    arguments = shlex.split(command.partition(" -m pytest ")[2])

    result = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments, "--collect-only", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "--no-server" in arguments
    assert "tests/crds/test_spec.py::" in result.stdout
    assert result.stdout.splitlines()[-1] == "loaded:"
