"""`finetune chat`: a checkpoint and its base model answer, one after the other."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console
from rich.text import Text

from finetune_api.failure import FineTuneError
from finetune_api.status import StatusModel
from finetune_cli.plain_text import console, one_line, say_problems, several_lines

if TYPE_CHECKING:
    from finetune_trainer.chat.models import Answer, Models, Sampling, Which
    from finetune_trainer.data.rows import Message

STYLES: dict[Which, str] = {"base": "cyan", "tuned": "green"}
INTERRUPTED = 130
RESET, QUIT = "/reset", "/quit"
COMMANDS = f"{RESET} forgets the conversation; {QUIT} or Ctrl-D ends; Ctrl-C stops an answer, twice ends"


class ChatAnswer(StatusModel):
    """What a model answered."""

    model: Literal["base", "tuned"]
    source: str
    """The base model, or the checkpoint."""
    text: str
    tokens: int
    stopped: Literal["end", "length", "interrupt"]


class ChatAnswers(StatusModel):
    """What the models answered to a prompt."""

    system: str | None
    prompt: str
    answers: tuple[ChatAnswer, ...]


def chat_with(
    run: str,
    *,
    checkpoint: str | None,
    only: Which | None,
    system: str | None,
    prompt: str | None,
    max_tokens: int | None,
    temperature: float,
    json_wanted: bool,
) -> int:
    """Has the models answer the prompt, or without one what is typed; returns the exit code.

    Raises FineTuneError where there is no such checkpoint, no base model, or they do not belong together.
    """
    people = console(stderr=json_wanted)
    with people.status("loading"):
        from finetune_trainer.chat.checkpoint import find_checkpoint

        found = find_checkpoint(run, checkpoint)
        if not found.in_four_bits:
            from finetune_trainer.workers.environment import leave_out_bitsandbytes

            leave_out_bitsandbytes()
        from finetune_trainer.chat.models import BOTH, Sampling, load_models

        models = load_models(found, BOTH if only is None else (only,))
    conversation = Conversation(models, Sampling(max_tokens, temperature), system)
    if prompt is None:
        return _loop(people, conversation)
    answers = conversation.ask(prompt, None if json_wanted else Writing(people))
    ended = INTERRUPTED if _interrupted(answers) else 0
    if not json_wanted:
        return ended
    document = ChatAnswers(
        system=system,
        prompt=prompt,
        answers=tuple(
            ChatAnswer(
                model=name,
                source=models.sources[name],
                text=answer.text,
                tokens=answer.tokens,
                stopped=answer.stopped,
            )
            for name, answer in answers.items()
        ),
    )
    typer.echo(document.model_dump_json(by_alias=True, indent=2))
    return ended


class Conversation:
    """What was said so far, of each model apart."""

    def __init__(self, models: Models, sampling: Sampling, system: str | None) -> None:
        self.models = models
        self._sampling = sampling
        self._system = system
        self._said: dict[Which, list[Message]] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets what was said, but for the system message."""
        from finetune_trainer.data.rows import Message

        first = [] if self._system is None else [Message("system", self._system)]
        self._said = {name: list(first) for name in self.models.by_name}

    def ask(self, question: str, writing: Writing | None = None) -> dict[Which, Answer]:
        """Has each model answer, and writes what they say while they say it.

        Raises FineTuneError, with the conversation as it was, where a model cannot be asked, and typer.Exit
        where two answers are stopped with nothing said between.
        """
        from finetune_trainer.data.rows import Message

        writing = writing or Writing(Console(quiet=True))
        before = {name: list(said) for name, said in self._said.items()}
        answers: dict[Which, Answer] = {}
        try:
            for name, said in self._said.items():
                said.append(Message("user", question))
                writing.begin(name)
                answer = self.models.answer(name, said, self._sampling, writing.say)
                writing.end(answer)
                said.append(Message("assistant", answer.text))
                if answer.stopped == "interrupt" and not answer.text:
                    if any(each.stopped == "interrupt" for each in answers.values()):
                        raise typer.Exit(INTERRUPTED)
                    del said[-2:]
                answers[name] = answer
        except (FineTuneError, KeyboardInterrupt):
            self._said = before
            raise
        return answers


class Writing:
    """Writes answers bit by bit, each below the name of its model."""

    def __init__(self, people: Console) -> None:
        self._people = people
        self._name: Which | None = None
        self._at_begin = True

    def begin(self, name: Which) -> None:
        """Begins an answer."""
        if self._name is not None:
            self._people.print()
        self._name = name
        self._people.print(Text(name, f"bold {STYLES[name]}"))

    def say(self, text: str) -> None:
        """Writes a part of it."""
        self._people.print(Text(several_lines(text), STYLES[self._name or "base"]), end="")
        self._at_begin = text.endswith("\n")

    def end(self, answer: Answer) -> None:
        """Ends it, and says why where it did not end by itself."""
        if not self._at_begin:
            self._people.print()
        self._at_begin = True
        if answer.stopped != "end":
            why = f"cut after {answer.tokens} tokens" if answer.stopped == "length" else "stopped"
            self._people.print(f"... {why}", style="dim")


def _loop(people: Console, conversation: Conversation) -> int:
    """Asks what is typed until it ends; returns the exit code."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() then has a history, and lines that can be edited
    typed = sys.stdin.isatty()
    for name, source in conversation.models.sources.items():
        people.print(Text.assemble((f"{name:6}", STYLES[name]), one_line(source)))
    if typed:
        people.print(COMMANDS, style="dim")
    interrupted = False
    while True:
        try:
            people.print()
            question = _typed("> " if typed else "")
            if question == QUIT:
                return 0
            interrupted = False
            interrupted = _obey(people, conversation, question)
        except FineTuneError as error:
            say_problems(error.problems)
        except KeyboardInterrupt:
            people.print()
            if interrupted:
                return INTERRUPTED
            interrupted = True
            people.print("press Ctrl-C again to end", style="dim")


def _typed(prompt: str) -> str:
    """A line that is typed; QUIT where there are no more."""
    try:
        return input(prompt).strip()
    except EOFError:
        return QUIT


def _obey(people: Console, conversation: Conversation, line: str) -> bool:
    """Does what a line says; returns whether it was a question whose last answer was stopped."""
    if line == RESET:
        conversation.reset()
        people.print("a new conversation", style="dim")
    if line in ("", RESET):
        return False
    return _interrupted(conversation.ask(line, Writing(people)))


def _interrupted(answers: dict[Which, Answer]) -> bool:
    """Whether the last answer was stopped."""
    return next(reversed(answers.values())).stopped == "interrupt"
