"""What the rows of a job are: statistics of each file, and the first rows as they are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import StatusModel
from finetune_trainer.data.labels import labels_of
from finetune_trainer.data.pairs import ANSWERS
from finetune_trainer.data.places import Places
from finetune_trainer.data.row_statistics import Bin, Repeats, histogram, repeats, repeats_of
from finetune_trainer.data.shown_rows import ShownRow, shown_tokens
from finetune_trainer.data.tokens import RowsInMemory, TokenizedRows
from finetune_trainer.plan.mixture import Mixture, mixture
from finetune_trainer.plan.prepare import Prepared, TokenStatistics, prepare, statistics_of
from finetune_trainer.plan.tokenization import Tokenization, Tokens


class RepeatedRows(StatusModel):
    """Rows that have the same tokens as others."""

    rows: int
    """How many there are."""
    at: str
    """Where the first one is, such as `line 13`."""
    of: str
    """Where the row is that it repeats."""


class FileStatistics(TokenStatistics):
    """The training rows, or the validation rows, as they are mixed and held out.

    Lengths are of conversations, of which a pair has two.
    """

    path: str
    """Where they are from: several paths stand side by side."""
    lengths: tuple[Bin, ...]
    truncated_rows: int
    """Rows that are longer than the plan's context length."""
    duplicates: RepeatedRows | None
    """Rows with the same tokens as an earlier one."""
    in_training: RepeatedRows | None
    """Validation rows that are also training rows."""
    labels: dict[str, int] | None
    """Of a classifier's rows, how many have which label."""


@dataclass(frozen=True)
class Inspection:
    """The rows of a job, before and after truncation."""

    prepared: Prepared
    tokenization: Tokenization
    tokens: Tokens

    @cached_property
    def mixture(self) -> Mixture:
        """The rows before truncation; found again only where rows or statistics are asked for."""
        files = [file.rows for file in self.tokens.files]
        inputs, per_row = self.tokenization.inputs, self.tokenization.task.documents
        return mixture(self.prepared.spec, files, inputs, per_row)

    def files(self) -> tuple[FileStatistics, ...]:
        """The statistics of the training rows and, if there are any, of the validation rows."""
        spec = self.prepared.spec
        sources = ", ".join(source.path for source in spec.sources)
        paths = (sources, spec.valid_path or f"{sources}, held out")
        cut = (self.prepared.train, self.prepared.validation)
        return tuple(
            self._statistics(path, *rows, trained)
            for path, rows, trained in zip(paths, self.mixture.rows, cut, strict=False)
            if trained is not None
        )

    def first_rows(self, count: int) -> tuple[ShownRow, ...]:
        """The first training rows as they are trained on; of a pair, both conversations."""
        if not count:
            return ()
        tokenization = self.tokenization
        task, chat = tokenization.task, tokenization.chat
        documents, place = self.mixture.rows[0]
        first = _first(documents, count * task.documents)
        cut, _ = task.rows(first, self.prepared.plan.context_length, place, RowsInMemory())
        documents, indices = cut.laid_out(range(len(cut)))
        shown = []
        for index in indices:
            ids, trained = documents.row(int(index))
            shown.append(
                ShownRow(
                    place=place(int(documents.lines[index])),
                    answer=ANSWERS[index % 2] if task.documents > 1 else None,
                    label=chat.token(int(ids[-1])) if chat.answers else None,
                    length=int(first.lengths[index]),
                    tokens=shown_tokens(tokenization.tokenizer, ids, trained),
                )
            )
        return tuple(shown)

    def _statistics(
        self, path: str, documents: TokenizedRows, place: Places, cut: TokenizedRows
    ) -> FileStatistics:
        per_row, lengths = self.tokenization.task.documents, documents.lengths
        train, of_train = self.mixture.rows[0]
        longest = lengths.reshape(-1, per_row).max(axis=1)
        return FileStatistics(
            **dict(statistics_of(documents, cut)) | {"rows": len(longest)},
            path=path,
            lengths=histogram(lengths),
            truncated_rows=int((longest > self.prepared.plan.context_length).sum()),
            duplicates=_repeated(repeats(documents, per_row), place, place),
            in_training=None
            if documents is train
            else _repeated(repeats_of(train, documents, per_row), place, of_train),
            labels=self._labels(documents),
        )

    def _labels(self, rows: TokenizedRows) -> dict[str, int] | None:
        chat = self.tokenization.chat
        if not chat.answers:
            return None
        counts = np.bincount(labels_of(rows, chat.answers), minlength=len(chat.answers))
        return {chat.token(token): int(count) for token, count in zip(chat.answers, counts, strict=True)}


def inspect(spec: FineTuneJobSpec) -> Inspection:
    """Prepares a job without loading weights, and keeps its rows as they are before truncation.

    Raises FineTuneError as `prepare` does.
    """
    kept: list[tuple[Tokenization, Tokens]] = []

    def tokenize(tokenization: Tokenization) -> Tokens:
        tokens = tokenization.tokenize()
        kept.append((tokenization, tokens))
        return tokens

    prepared = prepare(spec, tokenize, planning=True)
    [(tokenization, tokens)] = kept
    return Inspection(prepared, tokenization, tokens)


def _repeated(found: Repeats | None, place: Places, of: Places) -> RepeatedRows | None:
    if found is None:
        return None
    return RepeatedRows(rows=found.rows, at=place.briefly(found.line), of=of.briefly(found.of_line))


def _first(documents: TokenizedRows, count: int) -> TokenizedRows:
    end = documents.offsets[min(count, len(documents))]
    return TokenizedRows(
        input_ids=documents.input_ids[:end],
        trained=documents.trained[:end],
        offsets=documents.offsets[: count + 1],
        lines=documents.lines[:count],
    )
