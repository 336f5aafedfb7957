from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.beside_each_other import RAY

ROOT = Path(__file__).parents[2]
SAMPLE = """
import os, pathlib, pytest, time

@pytest.mark.parametrize("number", range(4))
def test_it(number):
    time.sleep(0.3)
    record = f"{pathlib.Path(__file__).stem} {os.getpid()} {os.environ['OMP_NUM_THREADS']}"
    with open(os.environ["RECORD"], "a") as file:
        print(record, file=file)
"""


def test_a_files_tests_run_in_one_process_and_share_the_processors_with_the_other(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / f"test_{name}.py").write_text(SAMPLE)
    record = tmp_path / "record"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2"),
            *(f"--config-file={ROOT / 'pyproject.toml'}", tmp_path),
        ],
        cwd=ROOT,
        env={**environment, "RECORD": str(record)},
        capture_output=True,
        check=True,
    )

    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    lines = [line.split() for line in record.read_text().splitlines()]
    assert len(lines) == 8
    assert {(name, given) for name, _, given in lines} == {("test_first", threads), ("test_second", threads)}
    processes = {(name, process) for name, process, _ in lines}
    assert len(processes) == len({process for _, process in processes}) == 2


def test_the_files_that_do_not_run_beside_each_other_are_there() -> None:
    assert [file for file in RAY if not (ROOT / file).is_file()] == []
