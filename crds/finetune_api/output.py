"""What became of `output` of a spec, in words: the same for a cluster and for one machine.

The run has finished by then, so all of it are warnings; each ends with the command that does it later.
"""

from __future__ import annotations

import shlex

from finetune_api.spec import FineTuneJobSpec, Output
from finetune_api.status import LONGEST_TEXT, FineTuneJobStatus, ProgressRecord, PushedModel, shortened

PUSH = "spec.output.push_to_hub"
MERGE = "spec.output.merge"
"""What warnings begin with."""

_LONGEST_PROBLEM = 500


def is_delivered(output: Output, result: ProgressRecord) -> bool:
    """Whether what is asked for was done already, by the result of a run."""
    return is_there(result.pushed, output, merged=output.merge)


def is_there(pushed: PushedModel | None, output: Output, *, merged: bool) -> bool:
    """Whether it is that model which was pushed, merged or not, and to where it is asked for."""
    return pushed is not None and (pushed.repository, pushed.merged) == (output.push_to_hub, merged)


def only_output_is_left(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> bool:
    """Whether all is trained and saved, so that a failure is one of `output` alone."""
    plan, progress = status.plan, status.progress
    if spec.output is None or plan is None or progress is None or not status.checkpoints:
        return False
    return progress.step >= plan.total_steps or bool(status.stopped_early)


def is_about_output(warning: str) -> bool:
    """Whether a warning is one of this module's."""
    return warning.startswith((f"{PUSH}:", f"{MERGE}:"))


def not_pushed(output: Output, run_directory: str, problem: str) -> str:
    """The warning that nothing is on the hub."""
    command = _command(output, run_directory)
    return cut(f"{PUSH}: the model was not pushed: {_said(problem)}; to push it later: {command}")


def not_merged(output: Output, run_directory: str, problem: str) -> str:
    """The warning that an adapter is on the hub in place of a merged model."""
    command = _command(output, run_directory)
    return cut(f"{MERGE}: the adapter is pushed, and not merged: {_said(problem)}; to merge it: {command}")


def cut(warning: str) -> str:
    """The warning in the length that a status takes."""
    return shortened(warning, LONGEST_TEXT)


def _said(problem: str) -> str:
    return shortened(problem, _LONGEST_PROBLEM)


def _command(output: Output, run_directory: str) -> str:
    words = ["finetune", "push", shlex.quote(run_directory), output.push_to_hub]
    words += ["--merge"] if output.merge else []
    words += ["--public"] if output.public else []
    return " ".join(words)
