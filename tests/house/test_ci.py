"""What CI runs, and when the tests of the harness run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ROOT / ".ci/run"
STUB = """#!/bin/sh
echo "make $*" >>"$RECORD"
test "$*" != "$FAILING"
"""


def harness_files() -> list[str]:
    [listed] = re.findall(r"^harness=\(([^)]*)\)$", RUN.read_text(), re.MULTILINE)
    return str(listed).split()


def repository(directory: Path) -> Path:
    """A repository with `.ci/run` and the files of the harness, each of one line."""
    (directory / ".ci").mkdir(parents=True)
    shutil.copy(RUN, directory / ".ci")
    for path in harness_files():
        file = directory / (path if Path(path).suffix else f"{path}/file")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{path}\n")
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=directory, check=True)
    return directory


def run(directory: Path, failing: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs CI with a make, and a dpkg, that do nothing; returns what make was called with."""
    programs, record = directory.parent / "programs", directory.parent / "record"
    programs.mkdir(exist_ok=True)
    record.write_text("")
    for name, content in (("make", STUB), ("dpkg", "#!/bin/sh\n"), ("docker", "#!/bin/sh\nexit 1\n")):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(directory.parent / "cache"),
        "RECORD": str(record),
        "FAILING": failing,
    }
    ended = subprocess.run(
        [directory / ".ci/run"], env=environment, capture_output=True, text=True, check=False
    )
    return ended, record.read_text().splitlines()


ALWAYS = ["make environment", "make lint", "make test", "make e2e"]


def test_the_harness_is_tested_when_its_files_have_not_passed_yet(tmp_path: Path) -> None:
    clone = repository(tmp_path / "clone")

    first, made = run(clone)
    assert first.returncode == 0, first.stderr
    assert made == [*ALWAYS, "make test-harness"]
    assert run(clone)[1] == ALWAYS

    (clone / "devcluster/file").write_text("changed\n")
    assert run(clone)[1] == [*ALWAYS, "make test-harness"]


def test_a_harness_that_failed_is_tested_again(tmp_path: Path) -> None:
    clone = repository(tmp_path / "clone")

    failed, made = run(clone, failing="test-harness")
    assert failed.returncode != 0
    assert made == [*ALWAYS, "make test-harness"]
    assert run(clone)[1] == [*ALWAYS, "make test-harness"]


def test_it_ends_with_what_the_minutes_went_to_also_when_something_fails(tmp_path: Path) -> None:
    failed, made = run(repository(tmp_path / "clone"), failing="test")

    assert failed.returncode != 0
    assert made == ALWAYS[:3]
    table = failed.stdout.splitlines()
    assert table[0] == "minutes"
    assert [line.split(maxsplit=1)[1] for line in table[1:]] == [
        "Python's packages",
        "make lint",
        "make test: failed",
        "all",
    ]


def test_the_workflow_has_the_same_files_of_the_harness() -> None:
    [hashed] = re.findall(r"hashFiles\(([^)]*)\)", (ROOT / ".github/workflows/ci.yaml").read_text())

    assert [each.strip(" '").removesuffix("/**") for each in hashed.split(",")] == harness_files()
    assert [path for path in harness_files() if not (ROOT / path).exists()] == []
