"""`finetune chat`: one answer, and a conversation on a terminal."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.cli.command_line import FINETUNE, Command
from tests.cli.terminal import CONTROL_SEQUENCE, CTRL_C, Terminal
from tests.trainer.chat.answering_runs import run_that_answers
from tests.trainer.training_jobs import LORA

from finetune_cli.chat import ChatAnswers

CTRL_D = b"\x04"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_that_answers(tiny_model, tmp_path_factory.mktemp("chat"), LORA)


def text_of(terminal: Terminal) -> str:
    return CONTROL_SEQUENCE.sub("", terminal.seen).replace("\r", "")


def test_both_answer_a_prompt(finetune: Command, run: Path) -> None:
    ended = finetune("chat", run, "--prompt", "One?", "--max-tokens", "16")

    assert ended.code == 0
    assert re.fullmatch(r"base\n(.|\n)+\n\.\.\. cut after 16 tokens\n\ntuned\nTwo,\nand three\.\n", ended.out)


def test_json_is_all_that_is_on_standard_output(finetune: Command, run: Path, tiny_model: Path) -> None:
    ended = finetune(
        "chat", run, "--prompt", "Ping?", "--system", "Be kind.", "--max-tokens", "8", "-o", "json"
    )
    said = ChatAnswers.model_validate_json(ended.out)
    base, tuned = said.answers

    assert ended.code == 0
    assert (said.prompt, said.system) == ("Ping?", "Be kind.")
    assert (base.model, base.source, base.tokens, base.stopped) == ("base", str(tiny_model), 8, "length")
    assert tuned.source in {str(run / f"epoch-{epoch}") for epoch in (19, 39, 59, 79)}


def test_one_model_and_one_checkpoint_can_be_chosen(finetune: Command, run: Path) -> None:
    chosen = finetune(
        "chat", run, "--prompt", "Ping?", "--only", "tuned", "--checkpoint", "epoch-39", "-o", "json"
    )

    [answer] = ChatAnswers.model_validate_json(chosen.out).answers
    assert (answer.model, answer.source) == ("tuned", str(run / "epoch-39"))
    assert answer.text == "Pong."


def test_a_conversation_on_a_terminal(run: Path, tmp_path: Path) -> None:
    with Terminal("chat", run, "--max-tokens", "8", cwd=tmp_path, columns=100) as terminal:
        terminal.read_until("> $")
        terminal.press(b"Ping?\n")
        terminal.read_until(r"Pong\.[^>]*> $")
        first = terminal.seen
        terminal.press(b"/reset\n")
        terminal.read_until(r"a new conversation[^>]*> $")
        terminal.press(b"Who?\n")
        terminal.read_until(r"one\.[^>]*> $")
        terminal.press(b"/quit\n")
        assert terminal.exit_code() == 0

    assert "\x1b[32mPong." in first
    text = text_of(terminal)
    assert re.search(r"> Ping\?\nbase\n(.|\n)+\n\ntuned\nPong\.\n\n> /reset\n", text)
    assert "tuned\nNo one.\n" in text
    assert "/reset forgets the conversation" in text


def test_ctrl_c_twice_ends(run: Path, tmp_path: Path) -> None:
    with Terminal("chat", run, "--only", "tuned", cwd=tmp_path, columns=100) as terminal:
        terminal.read_until("> $")
        terminal.press_until(CTRL_C, "press Ctrl-C again to end[^>]*> $")
        # Seen, it ends the line of the prompt. One more would kill a process that is ending already.
        terminal.press_until(CTRL_C, r"press Ctrl-C again to end[^>]*> \S*\r\n")
        assert terminal.exit_code() == 130


def test_ctrl_c_stops_an_answer_the_next_one_is_given_and_ctrl_d_ends(run: Path, tmp_path: Path) -> None:
    with Terminal("chat", run, "--max-tokens", "1900", cwd=tmp_path, columns=100) as terminal:
        terminal.read_until("> $")
        terminal.press(b"Ping?\n")
        terminal.read_until(r"base\S*\r\n\S*\w+")
        terminal.press(CTRL_C)
        terminal.read_until(r"Pong\.[^>]*> $")
        terminal.press(CTRL_D)
        assert terminal.exit_code() == 0


def test_lines_that_are_piped_are_asked_one_after_the_other(run: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [FINETUNE, "chat", run, "--only", "tuned"],
        input="Ping?\n/reset\nWho?\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line for line in ended.stdout.splitlines() if line in ("Pong.", "No one.")] == [
        "Pong.",
        "No one.",
    ]


def test_a_directory_that_is_no_run_is_an_error(finetune: Command, tmp_path: Path) -> None:
    ended = finetune("chat", tmp_path, "--prompt", "Ping?")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        f"error: {tmp_path}: is neither a run nor a checkpoint; give a run's directory, which holds job.yaml"
        " and epoch-0, or the directory of a checkpoint\n"
    )


def test_json_is_for_one_prompt(finetune: Command, run: Path) -> None:
    ended = finetune("chat", run, "-o", "json")

    assert ended.code == 2
    assert "is for --prompt; give one" in ended.err
