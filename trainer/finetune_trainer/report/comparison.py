"""Answers of the base model beside those of the model as it is, as a progress record has them."""

from __future__ import annotations

from collections import Counter

from finetune_api.status import LONGEST_SAMPLE, MOST_SAMPLES, Sample, shortened
from finetune_trainer.report.metrics import Answer, SampleLine


class Comparison:
    """The answers to each question: before training, and the newest."""

    def __init__(self) -> None:
        self._base: dict[tuple[str, int], Answer] = {}
        self._tuned: dict[tuple[str, int], Answer] = {}

    def add(self, line: SampleLine) -> None:
        """Adds answers, which are newer than those that are there."""
        answers = self._tuned if line.step else self._base
        same: Counter[str] = Counter()  # what is asked last may be the same in several conversations
        for answer in line.samples:
            answers[answer.prompt, same[answer.prompt]] = answer
            same[answer.prompt] += 1

    @property
    def pairs(self) -> list[tuple[Answer | None, Answer | None]]:
        """For each question the base model's answer and the newest, in the order in which they were asked."""
        asked = dict.fromkeys([*self._base, *self._tuned])
        return [(self._base.get(each), self._tuned.get(each)) for each in asked]

    def shown(self) -> list[Sample]:
        """Those of the first questions, shortened."""
        return [
            Sample(
                prompt=shortened(either.prompt, LONGEST_SAMPLE),
                base_answer=None if base is None else shortened(base.answer, LONGEST_SAMPLE),
                answer=None if tuned is None else shortened(tuned.answer, LONGEST_SAMPLE),
                expected=None if either.expected is None else shortened(either.expected, LONGEST_SAMPLE),
            )
            for base, tuned in self.pairs[:MOST_SAMPLES]
            for either in [tuned or base]
            if either is not None
        ]
