"""Language modelling, which predicts the next token: the tasks `causal_lm` and `instruction_tuning`.

For `causal_lm` all tokens of a row count in the loss, for `instruction_tuning` those of
the assistant's turns.
"""

from __future__ import annotations

from contextlib import suppress
from typing import cast

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune_api.failure import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat, Task, chat_format, text_format
from finetune_trainer.data.encoding import ConversationEncoder, LineEncoder
from finetune_trainer.data.layout import Batch
from finetune_trainer.data.places import Place
from finetune_trainer.data.reading import first_row
from finetune_trainer.data.rows import Text
from finetune_trainer.data.tokens import RowWriter, TokenizedRows, truncate
from finetune_trainer.data.tools import LANGUAGE_TASKS
from finetune_trainer.tasks.head import Scores, cross_entropy, positions_at_once
from finetune_trainer.tasks.objective import Judge, Loss, Model, Objective, base_of


class LanguageObjective(Objective):
    """The cross-entropy of every token that counts, given those before it."""

    def __init__(self, model: Model, scores: Scores | None = None) -> None:
        """`scores` is what the model's forward pass does after its head.

        Without it the forward pass makes the scores of all positions.
        """
        super().__init__(model)
        self._scores = scores
        self._at_once = positions_at_once(base_of(model).config.get_text_config().vocab_size)

    def forward(self, batch: Batch) -> Loss:
        """Sums the cross-entropy up, in fp32 whatever precision the model computes in."""
        labels = batch.labels.flatten()[batch.counted]
        hidden, head, scores = self.before_head(batch)
        if self._scores is None:
            return Loss(functional.cross_entropy(hidden.float(), labels, reduction="sum"))
        return Loss(cross_entropy(head, scores, hidden, labels, self._at_once))

    def before_head(self, batch: Batch) -> tuple[torch.Tensor, torch.nn.Module, Scores]:
        """What the head is given at the positions that count, shape (positions, width), and the head.

        Where the forward pass makes the scores, it is the scores, and a head that leaves them as they are.
        """
        # Outside training, models turn their cache on by themselves.
        computed = self.model if self._scores is None else _decoder(self.model)
        out = computed(**batch.inputs, use_cache=False)
        if self._scores is None:
            return out.logits.flatten(0, 1)[batch.counted], torch.nn.Identity(), Scores()
        return out.last_hidden_state.flatten(0, 1)[batch.counted], _head(self.model), self._scores


def _decoder(model: Model) -> torch.nn.Module:
    return cast("torch.nn.Module", base_of(model).get_decoder())  # type: ignore[no-untyped-call]


def _head(model: Model) -> torch.nn.Module:
    return cast("torch.nn.Module", base_of(model).get_output_embeddings())  # type: ignore[no-untyped-call]


class LanguageTask:
    """Language modelling as a `finetune_trainer.tasks.task.Task`."""

    model_class = AutoModelForCausalLM
    documents = 1
    compares = False
    has_perplexity = True

    def __init__(self, spec: FineTuneJobSpec, task: Task) -> None:
        self._spec = spec
        self._task = task

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """How conversations are written.

        Raises FineTuneError (InvalidSpec) when neither the tokenizer nor the spec can write conversations.
        """
        spec = self._spec
        try:
            return chat_format(tokenizer, spec.generation_config, self._task, spec.model_id)
        except FineTuneError as error:
            if not self._begins_with_a_text():
                raise
            return text_format(tokenizer, self._task, spec.model_id, "; ".join(error.problems))

    def _begins_with_a_text(self) -> bool:
        """Whether the first training row needs no chat template."""
        spec = self._spec
        if spec.trained_task not in LANGUAGE_TASKS:
            return False
        with suppress(FineTuneError):
            return isinstance(first_row(spec.sources[0].path, spec.trained_task, spec.columns), Text)
        return False

    def encoder(self, chat: ChatFormat) -> LineEncoder:
        """What makes tokens of lines."""
        return ConversationEncoder(self._task, chat, self._spec.columns)

    def rows(
        self, documents: TokenizedRows, context_length: int, place: Place, writer: RowWriter
    ) -> tuple[TokenizedRows, int]:
        """See `finetune_trainer.tasks.task.Task`: a document is a row."""
        return truncate(documents, context_length, place, writer)

    def remarks(self, train: TokenizedRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:  # noqa: ARG002
        """See `finetune_trainer.tasks.task.Task`."""
        return []

    def objective(
        self,
        model: Model,
        scores: Scores | None,
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002 - as for all tasks
    ) -> Objective:
        """The model with the cross-entropy of the tokens that count."""
        return LanguageObjective(model, scores)

    def judge(self, tokenizer: PreTrainedTokenizerBase) -> Judge | None:  # noqa: ARG002
        """See `finetune_trainer.tasks.task.Task`."""
        return None
