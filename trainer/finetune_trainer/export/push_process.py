"""A process that pushes a checkpoint for another one: `python -m finetune_trainer.export.push_process`.

It reads a `PushRequest` as a line of JSON from its standard input, and writes an `Answer` as a line for each
stage and for the end. It ends at once when its standard input is closed, as when the other one is gone.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel

from finetune_api.failure import FineTuneError
from finetune_trainer.export.push import Pushed, Stage, push

ENDED = 3
"""The exit code of a process that nobody waits for any more."""


class PushRequest(BaseModel):
    """What is to be pushed, and where to."""

    checkpoint: str
    """The path of its directory."""
    name: str
    merged: bool
    public: bool


class Answer(BaseModel):
    """Where a push is, or how it ended."""

    stage: Stage | None = None
    """What is done now."""
    pushed: Pushed | None = None
    """What is on the hub; None before that, and where it failed."""
    problem: str | None = None
    """Why it failed."""


def main() -> None:
    """Pushes what is asked for."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
        _first_to_go()
        request = PushRequest.model_validate_json(sys.stdin.readline())
        threading.Thread(target=_end_with_the_other, daemon=True).start()
        _say(answers, _answer(request, answers))


def _answer(request: PushRequest, answers: TextIO) -> Answer:
    try:
        pushed = push(
            request.checkpoint,
            request.name,
            merged=request.merged,
            public=request.public,
            tell=lambda stage: _say(answers, Answer(stage=stage)),
        )
    except FineTuneError as error:
        return Answer(problem="; ".join(error.problems))
    except MemoryError:
        return Answer(problem="it takes more memory than there is")
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is over and its checkpoints are there
        return Answer(problem=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Answer(pushed=pushed)


def _say(answers: TextIO, answer: Answer) -> None:
    answers.write(answer.model_dump_json() + "\n")
    answers.flush()


def _first_to_go() -> None:
    """Has the kernel end this process, and not the one that waits for it, where memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_the_other() -> None:
    # Not by sys.stdin, whose lock would be held meanwhile.
    while os.read(0, 1024):
        pass
    os._exit(ENDED)


if __name__ == "__main__":
    main()
