"""Prepares a job: reads and tokenizes its rows, and computes the model's shape, the numbers and the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import Numbers, chosen_context_length, numbers
from finetune_api.spec import MOST_PROMPTS, FineTuneJobSpec
from finetune_api.status import Plan, StatusModel
from finetune_trainer.checkpoint.inference import end_tokens, inference
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.packing import PackedRows, pack
from finetune_trainer.data.questions import HeldOut, Question, questions
from finetune_trainer.data.tokens import TokenizedRows, rows_also_in, trained_tokens
from finetune_trainer.model.load import (
    Shape,
    check_weights,
    load_config,
    load_generation_config,
    load_tokenizer,
    pad_token_id,
    remarks_on_weights,
    shape,
)
from finetune_trainer.model.remarks import transformers_remarks
from finetune_trainer.plan.mixture import Mixture, mixture
from finetune_trainer.plan.token_cache import writer_beside
from finetune_trainer.plan.tokenization import Tokenization, Tokens, all_or_every_problem
from finetune_trainer.report.trackers.tracker import check_tracker
from finetune_trainer.tasks.task import task_of


class TokenStatistics(StatusModel):
    """The lengths of rows in tokens; before truncation, unless a field says otherwise."""

    rows: int
    tokens: int
    """All tokens of all rows."""
    trained_tokens: int
    """The tokens that count in the loss when each row is seen once, after truncation."""
    shortest: int
    median: int
    percentile95: int
    longest: int


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to train."""

    spec: FineTuneJobSpec
    numbers: Numbers
    plan: Plan
    shape: Shape
    train: TokenizedRows
    validation: TokenizedRows | None
    token_statistics: TokenStatistics
    warnings: tuple[str, ...]
    questions: tuple[Question, ...] = ()
    """What the model is asked now and then."""

    @property
    def fingerprint(self) -> str:
        """A hash of the tokenized training rows, after truncation."""
        return self.train.fingerprint


def prepare(
    spec: FineTuneJobSpec,
    tokenize: Callable[[Tokenization], Tokens] = Tokenization.tokenize,
    *,
    planning: bool = False,
) -> Prepared:
    """Reads and checks all that a job needs, without loading weights.

    `tokenize` gives the tokens of the rows, which may have been kept from before. With `planning` nothing is
    trained afterwards: the weights may be absent, and a remark says so. Raises FineTuneError with the first
    problem of the tracker or the model, with every problem of the rows of both files, or with those of the
    numbers.
    """
    check_tracker(spec)
    remarks: list[str] = []
    with transformers_remarks("spec.model_id", remarks):
        config = load_config(spec)
        if planning:
            remarks += remarks_on_weights(spec)
        else:
            check_weights(spec)
        tokenizer = load_tokenizer(spec)
        model_shape = shape(spec, config)
    task = task_of(spec)
    chat = task.chat(tokenizer)

    tokenization = Tokenization(spec, tokenizer, task, chat)
    tokens = tokenize(tokenization)
    mixed = mixture(spec, [file.rows for file in tokens.files], tokenization.inputs, task.documents)
    tokenized = [rows for rows, _ in mixed.rows]
    warnings = [*remarks, *model_shape.warnings, *tokens.warnings, *mixed.remarks]
    warnings += _inference_remarks(spec, tokenizer, chat)
    largest_token = max(pad_token_id(tokenizer), *(int(rows.input_ids.max(initial=0)) for rows in tokenized))
    if largest_token >= model_shape.vocabulary:
        what = (
            f"its tokenizer gives token {largest_token}, and the model knows {model_shape.vocabulary}; they"
            " do not belong together"
        )
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.model_id: {spec.model_id}: {what}")
    longest, most = max(rows.longest for rows in tokenized), model_shape.context_length
    if spec.packing:
        _check_packing(spec, model_shape)
        context_length = chosen_context_length(spec, longest, most)
    else:
        rows = len(tokenized[0]) // task.documents
        computed = numbers(spec, rows=rows, longest_row=longest, model_context_length=most)
        context_length = computed.context_length
    cut = all_or_every_problem(
        lambda file: task.rows(file[0], context_length, file[1], writer_beside(file[0])),
        list(mixed.rows),
    )
    train = cut[0][0]
    validation = cut[1][0] if len(cut) > 1 else None
    truncated = sum(count for _, count in cut)
    if truncated:
        warnings.append(f"{truncated} rows are longer than {context_length} tokens and are truncated")
    warnings += task.remarks(train, tokenizer)
    if validation is not None:
        warnings += _shared_rows(train, validation)
    if spec.packing:
        train = pack(train, context_length, writer_beside(train))
        computed = numbers(spec, rows=len(train), longest_row=longest, model_context_length=most)

    asked, unasked = questions(spec, chat, most, _held_out(spec, mixed, task.documents))
    return Prepared(
        spec=spec,
        numbers=computed,
        plan=plan_of(computed, model_shape, train, validation, truncated_rows=truncated),
        shape=model_shape,
        train=train,
        validation=validation,
        token_statistics=statistics_of(tokenized[0], train),
        warnings=(*computed.warnings, *warnings, *unasked),
        questions=tuple(asked),
    )


def _held_out(spec: FineTuneJobSpec, mixed: Mixture, per_row: int) -> HeldOut | None:
    """The first rows that are held out, of `per_row` documents each; None where there are none."""
    if spec.valid_fraction is None:
        return None
    documents, places = mixed.rows[1]
    return HeldOut(documents.lines[::per_row][:MOST_PROMPTS].tolist(), places)


def _check_packing(spec: FineTuneJobSpec, model_shape: Shape) -> None:
    """Raises FineTuneError (InvalidSpec) where the documents of a sequence would see each other."""
    if not model_shape.end_to_end:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"spec.packing: the rows of a sequence would see each other in {spec.model_id}; leave it out",
        )


def _inference_remarks(
    spec: FineTuneJobSpec, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat
) -> list[str]:
    """What to know about generating with the checkpoints."""
    base = load_generation_config(spec)
    ready, remarks = inference(tokenizer, chat, base)
    warnings = [f"spec.model_id: {spec.model_id}: its generation_config.json {remark}" for remark in remarks]
    new = set(end_tokens(ready.generation)) - set(end_tokens(base))
    if spec.lora_config is not None and (new or chat.answers):
        ends = ", ".join(repr(tokenizer.decode(token)) for token in sorted(new))
        answers, lack = (
            ("are labels", "allows any text") if chat.answers else (f"end with {ends}", "does not stop there")
        )
        warnings.append(
            f"answers {answers}, and plain peft generates with the base's generation config, which {lack}:"
            " give `generate` generation_config=GenerationConfig.from_pretrained(CHECKPOINT), or use finetune"
            " merge"
        )
    return warnings


def plan_of(
    computed: Numbers,
    model_shape: Shape,
    train: TokenizedRows,
    validation: TokenizedRows | None,
    *,
    truncated_rows: int,
) -> Plan:
    """The plan of a job as its status shows it."""
    return Plan(
        rows=len(train),
        validation_rows=0 if validation is None else len(validation),
        tokens=len(train.input_ids),
        truncated_rows=truncated_rows,
        context_length=computed.context_length,
        fill=fill_of(train, computed.context_length) if isinstance(train, PackedRows) else None,
        effective_batch_size=computed.effective_batch_size,
        steps_per_epoch=computed.steps_per_epoch,
        total_epochs=computed.total_epochs,
        total_steps=computed.total_steps,
        checkpoint_epochs=list(computed.checkpoint_epochs),
        trainable_parameters=model_shape.trainable_parameters,
        total_parameters=model_shape.total_parameters,
    )


def fill_of(rows: TokenizedRows, context_length: int) -> float:
    """Which part of sequences of so many tokens the rows fill."""
    return round(len(rows.input_ids) / (len(rows) * context_length), 4)


def _shared_rows(train: TokenizedRows, validation: TokenizedRows) -> list[str]:
    shared = rows_also_in(train, validation)
    if not shared:
        return []
    return [
        f"{shared} of {len(validation)} validation rows are also training rows: the validation loss flatters"
    ]


def statistics_of(untruncated: TokenizedRows, train: TokenizedRows) -> TokenStatistics:
    """The statistics of rows, given before and after truncation."""
    lengths = untruncated.lengths
    return TokenStatistics(
        rows=len(untruncated),
        tokens=int(lengths.sum()),
        trained_tokens=trained_tokens(train),
        shortest=int(lengths.min()),
        median=int(np.median(lengths)),
        percentile95=int(np.percentile(lengths, 95)),
        longest=untruncated.longest,
    )
