"""Classification by a language model: its answer is one of a few labels, each of which is a token.

The loss is the cross-entropy of the label, over the whole vocabulary, as of any other token. What is measured
besides follows from the scores of the labels alone, as probabilities that add up to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from finetune_api.spec import ClassificationMetric, Classifier, FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.encoding import LabelEncoder, LineEncoder
from finetune_trainer.data.label_tokens import label_tokens
from finetune_trainer.data.labels import labels_of, remarks_on_labels, truncate_before
from finetune_trainer.data.layout import Batch
from finetune_trainer.data.places import Place
from finetune_trainer.data.tokens import RowWriter, TokenizedRows
from finetune_trainer.tasks.head import Scores
from finetune_trainer.tasks.language import LanguageObjective, LanguageTask
from finetune_trainer.tasks.objective import Judge, Loss, Model, Objective

ACCURACY = "accuracy"


class ClassificationObjective(LanguageObjective):
    """The cross-entropy of labels, whose tokens are `labels`."""

    def __init__(self, model: Model, scores: Scores | None, labels: Sequence[int]) -> None:
        super().__init__(model, scores)
        self._labels = torch.tensor(labels)

    def forward(self, batch: Batch) -> Loss:
        """Sums the cross-entropy up, in fp32 whatever precision the model computes in.

        There is one position for each row, so the scores of all of them are made at once. In training the
        rows are counted whose label is the likeliest one; in validation the labels' probabilities are given.
        """
        targets = batch.labels.flatten()[batch.counted]
        hidden, head, scores = self.before_head(batch)
        predicted = scores.of(head, hidden).float()
        total = functional.cross_entropy(predicted, targets, reduction="sum")
        labels = self._labels.to(targets.device)
        probabilities = predicted.detach()[:, labels].softmax(dim=1)
        if torch.is_grad_enabled():
            right = labels[probabilities.argmax(dim=1)] == targets
            return Loss(total, {ACCURACY: right.float().sum()})
        return Loss(total, documents=probabilities)


class ClassificationTask(LanguageTask):
    """Classification as a `finetune_trainer.tasks.task.Task`."""

    has_perplexity = False

    def __init__(self, spec: FineTuneJobSpec) -> None:
        super().__init__(spec, "instruction_tuning")

    @property
    def _classifier(self) -> Classifier:
        assert self._spec.classifier_config is not None  # the rules of a spec say so
        return self._spec.classifier_config

    def _labels(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        return label_tokens(tokenizer, self._classifier.label_tokens)

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """How conversations are written; an answer is a label.

        Raises FineTuneError (InvalidSpec) when neither the tokenizer nor the spec can write them.
        """
        return super().chat(tokenizer).answered_with(list(self._labels(tokenizer).values()))

    def encoder(self, chat: ChatFormat) -> LineEncoder:
        """What makes tokens of lines."""
        return LabelEncoder(self._labels(chat.tokenizer), chat, self._spec.columns)

    def rows(
        self,
        documents: TokenizedRows,
        context_length: int,
        place: Place,  # noqa: ARG002 - there is nothing to complain about
        writer: RowWriter,
    ) -> tuple[TokenizedRows, int]:
        """See `finetune_trainer.tasks.task.Task`: a document is a row, and is cut at its beginning."""
        return truncate_before(documents, context_length, writer)

    def remarks(self, train: TokenizedRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """See `finetune_trainer.tasks.task.Task`: labels that are in no row."""
        return remarks_on_labels(train, self._labels(tokenizer))

    def objective(self, model: Model, scores: Scores | None, tokenizer: PreTrainedTokenizerBase) -> Objective:
        """The model with the cross-entropy of labels."""
        return ClassificationObjective(model, scores, list(self._labels(tokenizer).values()))

    def judge(self, tokenizer: PreTrainedTokenizerBase) -> Judge:
        """See `finetune_trainer.tasks.task.Task`: the metrics that the spec asks for."""
        tokens, names = list(self._labels(tokenizer).values()), self._classifier.eval_metrics

        def measured(rows: TokenizedRows, found: NDArray[np.float32]) -> dict[str, float]:
            return metrics_of(names, labels_of(rows, tokens), found)

        return measured


def metrics_of(
    names: Sequence[ClassificationMetric], truth: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> dict[str, float]:
    """Metrics of predicted labels, by scikit-learn's functions of these names.

    `truth` has the index of each row's label, shape (rows,), and `probabilities` are shaped (rows, labels);
    the likeliest label counts as the prediction. `f1`, `precision` and `recall` are means over the labels
    that occur, in the rows or as predictions ("macro"); `prauc` is the mean average precision, `roc_auc` the
    mean area of each label against the rest, both over the labels that rows have. `roc_auc` is left out
    where all rows have one label.
    """
    from sklearn import metrics

    said = probabilities.argmax(axis=1)
    there = np.unique(truth)
    is_label = truth[:, None] == there[None, :]
    of_label = probabilities[:, there]
    functions: dict[ClassificationMetric, Callable[[], float]] = {
        "accuracy": lambda: metrics.accuracy_score(truth, said),
        "balanced_accuracy": lambda: metrics.recall_score(
            truth, said, labels=there, average="macro", zero_division=0
        ),
        "f1": lambda: metrics.f1_score(truth, said, average="macro", zero_division=0),
        "precision": lambda: metrics.precision_score(truth, said, average="macro", zero_division=0),
        "recall": lambda: metrics.recall_score(truth, said, average="macro", zero_division=0),
        "prauc": lambda: _mean(metrics.average_precision_score, is_label, of_label),
        "roc_auc": lambda: _mean(metrics.roc_auc_score, is_label, of_label),
        "matthews_corrcoef": lambda: metrics.matthews_corrcoef(truth, said),
    }
    wanted = [name for name in names if name != "roc_auc" or len(there) > 1]
    return {name: float(functions[name]()) for name in wanted}


def _mean(
    measure: Callable[..., object], is_label: NDArray[np.bool_], of_label: NDArray[np.float32]
) -> float:
    """The mean of a measure over labels, each against the rest."""
    each = [measure(is_label[:, index], of_label[:, index]) for index in range(is_label.shape[1])]
    return float(np.mean(cast("list[float]", each)))
