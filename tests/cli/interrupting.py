"""Ctrl-C while a run starts, on one device and on several."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command_line import small_job
from tests.cli.terminal import CTRL_C, Terminal, screen

from make_tiny_rows import make_tiny_rows


def check_that_ctrl_c_before_the_first_step_ends_at_once(
    directory: Path, model: Path, *arguments: str
) -> None:
    """Of `finetune run` with these arguments: it says that nothing was trained, and leaves nothing."""
    job = small_job(directory, model, eval_first=True)
    # What comes before the first step takes long enough to be interrupted.
    make_tiny_rows(directory / "valid.jsonl", 4000, seed=1)
    with Terminal("run", job, "--storage", "runs", *arguments, cwd=directory, columns=100) as terminal:
        terminal.read_until("rows with")
        terminal.press(CTRL_C)
        code, shown = terminal.exit_code(), screen(terminal.seen)

    assert code == 130
    assert "Suspended: stopped before a step was trained; run again to train" in shown
    assert not any("snapshot" in line or "Traceback" in line for line in shown)
    assert list(directory.glob("runs/*/*/snapshot-*")) == []
