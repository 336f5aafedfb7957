"""Direct preference optimisation, the task `preference_tuning`: one of two answers is to become likelier.

Source: Rafailov et al. 2023, "Direct Preference Optimization", equation 7.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.encoding import LineEncoder, PairEncoder
from finetune_trainer.data.layout import Batch
from finetune_trainer.data.pairs import truncate_pairs
from finetune_trainer.data.places import Place
from finetune_trainer.data.tokens import RowWriter, TokenizedRows
from finetune_trainer.tasks.head import Scores, cross_entropy, log_probabilities
from finetune_trainer.tasks.language import LanguageObjective, LanguageTask
from finetune_trainer.tasks.objective import Loss, Model, Objective


class PreferenceObjective(LanguageObjective):
    """The loss of pairs of answers, compared with what the model said of them before it was trained.

    Without that in a batch, it is what the model says of each document now that is computed.
    """

    def __init__(self, model: Model, scores: Scores | None, beta: float) -> None:
        super().__init__(model, scores)
        self._beta = beta

    def forward(self, batch: Batch) -> Loss:
        """Sums the loss of all pairs up, in fp32 whatever precision the model computes in.

        The metrics are named as in TRL's DPOTrainer.
        """
        labels = batch.labels.flatten()[batch.counted]
        hidden, head, scores = self.before_head(batch)
        each = log_probabilities(head, scores, hidden, labels, self._at_once)
        document = torch.repeat_interleave(
            torch.arange(len(batch.predicted), device=labels.device), batch.predicted, output_size=len(labels)
        )
        now = torch.zeros(len(batch.predicted), device=labels.device).index_add_(0, document, each)
        if batch.reference is None:
            return Loss(each.sum(), documents=now)
        chosen, rejected = (self._beta * (now - batch.reference)).view(-1, 2).unbind(dim=1)
        margin = chosen - rejected
        metrics = {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/margins": margin.sum(),
            "rewards/accuracies": (margin > 0).float().sum(),
        }
        total = -functional.logsigmoid(margin).sum()
        if not torch.is_grad_enabled():
            return Loss(total, metrics)
        # The head's scores are made twice and never kept: first for the loss, then with the derivative of the
        # loss by each log-probability, for its gradient.
        by_margin = self._beta * torch.sigmoid(-margin)
        weights = torch.stack([by_margin, -by_margin], dim=1).flatten()[document]
        gradient = cross_entropy(head, scores, hidden, labels, self._at_once, weights)
        return Loss(total + (gradient - gradient.detach()), metrics)


class PreferenceTask(LanguageTask):
    """Preference tuning as a `finetune_trainer.tasks.task.Task`."""

    documents = 2
    compares = True
    has_perplexity = False

    def __init__(self, spec: FineTuneJobSpec) -> None:
        super().__init__(spec, "instruction_tuning")

    def encoder(self, chat: ChatFormat) -> LineEncoder:
        """What makes tokens of lines."""
        return PairEncoder(chat, self._spec.columns)

    def rows(
        self, documents: TokenizedRows, context_length: int, place: Place, writer: RowWriter
    ) -> tuple[TokenizedRows, int]:
        """See `finetune_trainer.tasks.task.Task`: pairs of documents."""
        return truncate_pairs(documents, context_length, place, writer)

    def objective(
        self,
        model: Model,
        scores: Scores | None,
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002 - as for all tasks
    ) -> Objective:
        """The model with the loss of pairs."""
        return PreferenceObjective(model, scores, self._spec.preferences.beta)
