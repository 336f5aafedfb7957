"""Reads a progress record. The pod that wrote it runs whatever its user likes: nothing in it is trusted."""

from __future__ import annotations

import json
import re
from collections import Counter

from pydantic import ValidationError

from finetune_api.assignment import LARGEST_RECORD
from finetune_api.paths import child
from finetune_api.retention import flagged
from finetune_api.status import Checkpoint, ProgressRecord

_SHOWN = 3
"""Problems of a record that are named."""


class RecordError(ValueError):
    """Why a record must not be shown."""


def read_record(text: str, run_directory: str, run_name: str) -> ProgressRecord:
    """The record of the run `run_name` (`namespace/name-uid`), its paths spelt below `run_directory`.

    The best and the latest checkpoint are marked. Raises RecordError when the text is too large, is no
    record, contradicts itself, or names a path outside of the run.
    """
    written = text.encode(errors="replace")
    if len(written) > LARGEST_RECORD:
        raise RecordError(f"it has {len(written)} bytes; {LARGEST_RECORD} are allowed")
    try:
        record = ProgressRecord.model_validate_json(written)
    except ValidationError as error:
        raise RecordError("; ".join(_words(error))) from error
    problems = _contradictions(record, run_name)
    if problems:
        raise RecordError("; ".join(problems[:_SHOWN]))
    # A path may be spelt in several ways (`file:///runs`, `/runs/`); ours is the one that users have given.
    listed = [
        each.model_copy(update={"path": child(run_directory, each.name)}) for each in record.checkpoints
    ]
    return record.model_copy(update={"checkpoints": flagged(listed)})


def is_only_further(before: str | None, after: str | None) -> bool:
    """Whether all that a record says anew is how far training is; both are as they were written."""
    if before is None or after is None or max(len(before), len(after)) > LARGEST_RECORD:
        return False
    try:
        old, new = json.loads(before), json.loads(after)
    except (ValueError, RecursionError):
        return False
    if not isinstance(old, dict) or not isinstance(new, dict):
        return False
    trains = old.pop("progress", None) is not None and new.pop("progress", None) is not None
    return trains and old == new


def _words(error: ValidationError) -> list[str]:
    # Without the values: they are whatever somebody wrote there.
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        f"{'.'.join(str(part)[:40] for part in detail['loc'][:6]) or 'it'}: {detail['msg'][:100]}"
        for detail in details[:_SHOWN]
    ]


def _contradictions(record: ProgressRecord, run_name: str) -> list[str]:
    problems = [
        f"checkpoints.{number}.path is not that of {checkpoint.name} in {run_name}"
        for number, checkpoint in enumerate(record.checkpoints)
        if not _is_in(run_name, checkpoint)
    ]
    names = Counter(each.name for each in record.checkpoints)
    problems += [f"checkpoints: {name} is listed twice" for name, count in names.items() if count > 1]
    progress, plan = record.progress, record.plan
    if progress is not None:
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", progress.epochs):
            problems.append("progress.epochs is not of the form 2/5")
        if plan is None:
            problems.append("progress is given without a plan")
        elif progress.step > plan.total_steps:
            problems.append("progress.step is beyond plan.totalSteps")
    if plan is not None:
        problems += [
            f"checkpoints: {each.name} is beyond the last step"
            for each in record.checkpoints
            if each.step > plan.total_steps
        ]
    return problems


def _is_in(run_name: str, checkpoint: Checkpoint) -> bool:
    directory = checkpoint.path.partition("?")[0]
    return directory.endswith(f"/{run_name}/{checkpoint.name}") and ".." not in directory.split("/")
