"""The training and the validation rows of a job, of the rows at its paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import DataSource, FineTuneJobSpec
from finetune_trainer.data.mixing import Indices, Taken, exactly, held_out, repeated, together
from finetune_trainer.data.places import Places
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.plan.token_cache import writer_beside
from finetune_trainer.storage.inputs import Inputs


@dataclass(frozen=True)
class Mixture:
    """What a job trains and validates on."""

    rows: Sequence[tuple[TokenizedRows, Places]]
    """The documents of the training rows, and of the validation rows if there are any, and where they are."""
    remarks: list[str]
    """For people."""


def mixture(
    spec: FineTuneJobSpec, files: Sequence[TokenizedRows], inputs: Sequence[Inputs], per_row: int
) -> Mixture:
    """The rows of a job: of each source as many as it says, without those that are held out.

    `files` are the documents at each of the job's paths, `per_row` of them for each row, and `inputs` their
    files. Raises FineTuneError (InvalidSpec) where nothing is held out, or nothing is left to train on.
    """
    sources = spec.sources
    if len(sources) == 1 and spec.valid_fraction is None and sources[0].weight is sources[0].rows is None:
        return Mixture([(rows, Places(each)) for rows, each in zip(files, inputs, strict=True)], [])
    train: list[Taken] = []
    held: list[Taken] = []
    remarks: list[str] = []
    first_file = 0
    for index, source in enumerate(sources):
        rows = np.arange(len(files[index]) // per_row)
        if spec.valid_fraction is not None:
            out = held_out(files[index], per_row, spec.valid_fraction)
            held.append(Taken(files[index], rows[out], first_file))
            rows = rows[~out]
        if not len(rows):
            what = f"holds out all rows of {source.path}; lower it, or give spec.valid_path"
            raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.valid_fraction: {what}")
        chosen = _chosen(rows, source, [spec.seed, index])
        if len(sources) > 1 or len(chosen) != len(rows):
            remarks.append(f"{source.path}: an epoch has {len(chosen)} rows of its {len(rows)}")
        train.append(Taken(files[index], chosen, first_file))
        first_file += len(inputs[index].files)
    all_files = tuple(file for each in inputs[: len(sources)] for file in each.files)
    place = Places(Inputs("", all_files, all_files))
    # On disk where those of one file are.
    writer_of = next((rows for rows in files if rows.directory is not None), files[0])
    mixed = [(together(train, per_row, writer_beside(writer_of)), place)]
    if spec.valid_fraction is not None:
        count = sum(len(each.rows) for each in held)
        if not count:
            what = "holds out none of the rows; raise it, or give spec.valid_path"
            raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.valid_fraction: {what}")
        every = sum(len(each.documents) // per_row for each in held)
        remarks.append(f"spec.valid_fraction: {count} of {every} rows are held out for validation")
        mixed.append((together(held, per_row, writer_beside(writer_of)), place))
    elif spec.valid_path is not None:
        mixed.append((files[-1], Places(inputs[-1])))
    return Mixture(mixed, remarks)


def _chosen(rows: Indices, source: DataSource, seed: Sequence[int]) -> Indices:
    if source.rows is not None:
        return exactly(rows, source.rows, seed)
    return rows if source.weight is None else repeated(rows, source.weight, seed)
