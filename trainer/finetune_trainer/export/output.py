"""What `output` of a spec asks for at the end of a run: its best checkpoint on a hub.

The checkpoints are complete by then. So whatever goes wrong is a warning, and whoever stops it loses nothing.
It is done by a process of its own, which can be ended at any moment, and gives back what merging takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from finetune_api.failure import FineTuneError
from finetune_api.output import PUSH, cut, is_about_output, is_there, not_merged, not_pushed
from finetune_api.retention import best
from finetune_api.spec import FineTuneJobSpec, Output
from finetune_api.status import ProgressRecord, PushedModel
from finetune_trainer.limits import free_memory
from finetune_trainer.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from finetune_trainer.export.push_process import Answer

GIB = 2**30


def check_output(spec: FineTuneJobSpec) -> list[str]:
    """Checks before training whether the model can be pushed; see `check_hub`, also for what is raised."""
    if spec.output is None:
        return []
    from finetune_trainer.export.push import check_hub  # which imports the hub's client

    try:
        remarks = check_hub(spec.output.push_to_hub, public=spec.output.public)
    except FineTuneError as error:
        problems = (f"{PUSH}: {problem}" for problem in error.problems)
        raise FineTuneError(error.failure_class, *problems) from error
    return [f"{PUSH}: {remark}" for remark in remarks]


def memory_to_merge(parameters: int) -> int:
    """Bytes that merging takes: a model in fp32, its embeddings twice if they are tied, and the libraries."""
    return 5 * parameters + GIB


def lack_of_memory(output: Output | None, parameters: int, memory: int | None) -> str | None:
    """Why an adapter cannot be merged in so much memory, in words; None where it can, or nobody asks for it.

    `parameters` are those of the model, `memory` is in bytes, and None where it is not known.
    """
    if output is None or not output.merge or memory is None or memory_to_merge(parameters) <= memory:
        return None
    needed = memory_to_merge(parameters) / GIB
    return (
        f"merging takes about {needed:.1f} GiB of memory, and there are {memory / GIB:.1f} GiB, on a cluster"
        " those of the head (spec.cluster.head)"
    )


def deliver(
    run: RunDirectory, output: Output, result: ProgressRecord, tell: Callable[[ProgressRecord], None]
) -> ProgressRecord:
    """Pushes the best checkpoint of a run that has finished with this result.

    Returns the result with the model that was pushed, or with a warning that says why it was not and how to
    do it later, and keeps it in the run directory. `tell` gets the result meanwhile, with what is done.
    An exception that a signal raises ends the process that pushes.
    """
    others = [each for each in result.warnings if not is_about_output(each)]
    try:
        pushed, warnings = _pushed(run, output, result, tell)
    except Exception as error:  # noqa: BLE001 - the run is over, and its checkpoints are there
        pushed, warnings = result.pushed, [not_pushed(output, run.path, " ".join(str(error).split()))]
    update = {"pushed": pushed, "warnings": [*others, *map(cut, warnings)], "doing": None}
    delivered = result.model_copy(update=update)
    try:
        run.finish(delivered)
    except FineTuneError as error:
        unnoted = cut(f"{PUSH}: what came of it is not noted: {error}")
        delivered = delivered.model_copy(update={"warnings": [*delivered.warnings, unnoted]})
    return delivered


def _pushed(
    run: RunDirectory, output: Output, result: ProgressRecord, tell: Callable[[ProgressRecord], None]
) -> tuple[PushedModel | None, list[str]]:
    """What is on the hub at the end, and warnings."""
    from finetune_trainer.export.push import Stage

    chosen = best(run.checkpoints())
    if chosen is None:
        return result.pushed, [not_pushed(output, run.path, "the run has no checkpoint")]
    parameters = result.plan.total_parameters if result.plan is not None else 0
    lack = lack_of_memory(output, parameters, free_memory())
    unmerged = [] if lack is None else [not_merged(output, run.path, lack)]
    merged = output.merge and lack is None
    if is_there(result.pushed, output, merged=merged):
        return result.pushed, unmerged

    def telling(answer: Answer) -> None:
        name, to = chosen.name, output.push_to_hub
        merging = answer.stage is Stage.MERGING
        doing = f"merging {name}, to push it to {to}" if merging else f"pushing {name} to {to}"
        tell(result.model_copy(update={"doing": doing}))

    answer = _ask(chosen.path, output, telling, merged=merged)
    if answer.pushed is None and answer.stage is Stage.MERGING:
        unmerged = [not_merged(output, run.path, answer.problem or "")]
        merged = False
        answer = _ask(chosen.path, output, telling, merged=merged)
    if answer.pushed is None:
        return result.pushed, [not_pushed(output, run.path, answer.problem or "")]
    pushed = answer.pushed
    remarks = [f"{PUSH}: {'; '.join(pushed.remarks)}"] if pushed.remarks else []
    url = f"{pushed.address}/tree/{pushed.commit}"
    there = PushedModel(repository=pushed.name, revision=pushed.commit, url=url, merged=merged)
    return there, [*unmerged, *remarks]


def _ask(checkpoint: str, output: Output, tell: Callable[[Answer], None], *, merged: bool) -> Answer:
    """The last answer of a process that pushes; without `pushed` it has the problem, and its stage."""
    from finetune_trainer.export.push_process import Answer, PushRequest

    request = PushRequest(checkpoint=checkpoint, name=output.push_to_hub, merged=merged, public=output.public)
    last = Answer()
    with pushing_process() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(request.model_dump_json() + "\n")
            process.stdin.flush()
        for line in process.stdout:
            answer = Answer.model_validate_json(line)
            if answer.stage is None:
                return answer.model_copy(update={"stage": last.stage})
            last = answer
            tell(answer)
        code = process.wait()
    return last.model_copy(update={"problem": _end_in_words(code)})


def _end_in_words(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, as the kernel does where memory runs out"
    return f"its process ended with {code}, without a word"


@contextmanager
def pushing_process() -> Iterator[subprocess.Popen[str]]:
    """A process that pushes, see `push_process`; it is ended with the `with` block, and leaves no files."""
    with tempfile.TemporaryDirectory(prefix="finetune-push-") as scratch:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TMPDIR": scratch,
        }
        process = subprocess.Popen(
            # -P: nothing in the working directory is taken for a module.
            [sys.executable, "-P", "-m", "finetune_trainer.export.push_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what goes wrong is in its answers
            env=environment,
            process_group=0,  # Ctrl-C is for the one that started it
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
