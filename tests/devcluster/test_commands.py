from __future__ import annotations

import sys
from pathlib import Path

import pytest

from devcluster.commands import run
from devcluster.failure import ClusterError


def test_what_a_command_writes_is_returned() -> None:
    assert run([sys.executable, "-c", "print(input())"], stdin="hello\n") == "hello\n"


def test_a_command_that_nothing_is_given_to_reads_nothing() -> None:
    assert run([sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"], seconds=30) == "''\n"


def test_a_command_runs_where_and_with_what_it_is_told(tmp_path: Path) -> None:
    asked = "import os; print(os.getcwd(), os.environ)"

    shown = run([sys.executable, "-c", asked], environment={"ONE": "1"}, directory=tmp_path)

    assert shown.startswith(f"{tmp_path} ")
    assert "'ONE': '1'" in shown
    assert "HOME" not in shown


@pytest.mark.parametrize(
    ("program", "seconds", "said"),
    [
        ("import sys; sys.exit('no room')", 30, "it: no room"),
        ("import time; time.sleep(60)", 1, "it took longer than 1 s"),
    ],
)
def test_a_command_that_does_not_end_well_is_an_error_that_says_why(
    program: str, seconds: float, said: str
) -> None:
    with pytest.raises(ClusterError) as error:
        run([sys.executable, "-c", program], seconds=seconds, shown="it")

    assert str(error.value) == said


def test_a_command_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(ClusterError, match="no-such-program is not installed"):
        run(["no-such-program"])
