"""Language modelling, which predicts the next token: the tasks `causal_lm` and `instruction_tuning`.

For `causal_lm` all tokens of a row count in the loss, for `instruction_tuning` those of
the assistant's turns.
"""

from __future__ import annotations

from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat, chat_format
from finetune_trainer.data.encoding import LineEncoder
from finetune_trainer.data.layout import Batch
from finetune_trainer.data.tokens import IGNORED
from finetune_trainer.tasks.objective import Loss, Model, Objective


class LanguageObjective(Objective):
    """The cross-entropy of every token that counts, given those before it."""

    def forward(self, batch: Batch) -> Loss:
        """Sums the cross-entropy up, in fp32 whatever precision the model computes in."""
        # Outside training, models turn their cache on by themselves.
        logits = self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        # logits are of shape (rows, length, vocabulary)
        counts = batch.labels != IGNORED
        predicted = logits[counts].float()  # (tokens that count, vocabulary)
        return Loss(functional.cross_entropy(predicted, batch.labels[counts], reduction="sum"))


class LanguageTask:
    """Language modelling as a `finetune_trainer.tasks.task.Task`."""

    model_class = AutoModelForCausalLM

    def __init__(self, spec: FineTuneJobSpec) -> None:
        self._spec = spec

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """How conversations are written.

        Raises FineTuneError (InvalidSpec) when neither the tokenizer nor the spec can write conversations.
        """
        spec = self._spec
        return chat_format(tokenizer, spec.generation_config, spec.trained_task, spec.model_id)

    def encoder(self, chat: ChatFormat) -> LineEncoder:
        """What makes tokens of lines."""
        return LineEncoder(self._spec.trained_task, chat)

    def objective(self, model: Model) -> Objective:
        """The model with the cross-entropy of the tokens that count."""
        return LanguageObjective(model)
