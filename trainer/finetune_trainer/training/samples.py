"""Answers of the model as it is to the questions of `sample_prompts`; they change nothing of the training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.pytorch_utils import move_to_device

from finetune_api.numbers import ResolvedPrecision
from finetune_trainer.checkpoint.inference import greedy
from finetune_trainer.data.questions import Question
from finetune_trainer.model.attention import attending_as_loaded
from finetune_trainer.report.metrics import Answer, Answers
from finetune_trainer.tasks.objective import Model, Objective, base_of
from finetune_trainer.training.forward import Forward
from finetune_trainer.training.job import TrainingJob
from finetune_trainer.training.setup import Loaded

SHARE = 0.1
"""Of the time since training began, as much may be spent on answers in all."""
FIRST_SECONDS = 30.0
"""May be spent in any case: the model is asked before training, when no time has passed."""
MOST_SECONDS = 120.0
"""May be spent at a time: the other devices wait, and give a device up that is away for too long."""


def allowance(elapsed: float, spent: float) -> float:
    """The seconds that answers may take now, `elapsed` after training began, if they have taken `spent`."""
    return min(MOST_SECONDS, max(FIRST_SECONDS, SHARE * elapsed) - spent)


Asked = tuple[list[Answer], str | None]
"""Answers, and why there are no more where that is not the time."""


@dataclass(frozen=True)
class Together:
    """How ranks that hold a part of the model each ask it: all of them, at the same time.

    Each computes every token, since a layer's weights are gathered from all. Rank 0 decides which token it is
    and whether there is time for another, so that all make the same number of forward passes, whatever their
    arithmetic or their clocks.
    """

    agree: Callable[[Sequence[float]], list[float]]
    """What rank 0 passes in. All ranks must call this."""
    run: Callable[[Callable[[], Asked]], Asked]
    """`Objective.run`."""


@dataclass
class Sampler:
    """Asks the model. What there is no time for is left out."""

    model: Model
    questions: tuple[Question, ...]
    decode: Callable[[list[int]], str]
    generation: GenerationConfig
    """Greedy, and no longer than an answer may be."""
    attention: str
    """The implementation with which the model was loaded."""
    device: torch.device
    dtype: ResolvedPrecision
    compiled: bool = False
    """Whether layers of it are."""
    together: Together | None = None
    """None where this rank has all of the model, and asks alone."""
    clock: Callable[[], float] = time.monotonic
    _spent: float = 0.0
    _last: float = 0.0
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def ask(self) -> Answers | None:
        """The answers of the model as it is; None where nothing is asked.

        What the model meets is a problem instead of answers, and training goes on. Only where ranks ask
        together a want of memory is raised: one of them may meet it alone, and the others would wait for it.
        """
        if not self.questions:
            return None
        started = self.clock()
        until = started + allowance(started - self._began, self._spent)
        asked = partial(self._asked, until)
        with self._undisturbed():
            answers, problem = asked() if self.together is None else self.together.run(asked)
        seconds = self.clock() - started
        self._spent += seconds
        return Answers(answers, len(self.questions) - len(answers), seconds, problem)

    def _asked(self, until: float) -> Asked:
        answers: list[Answer] = []
        try:
            for question in self.questions:
                answer = self._answer(question, until)
                if answer is None:
                    break
                answers.append(answer)
        except Exception as error:  # whatever it is, training goes on
            if self.together is not None and isinstance(error, torch.OutOfMemoryError):
                raise
            return answers, str(error).strip().partition("\n")[0] or type(error).__name__
        return answers, None

    def _answer(self, question: Question, until: float) -> Answer | None:
        """The answer, or None where there is too little time for it."""
        began = self.clock()
        if self._agreed(began + self._last > until):
            return None
        generated = self._generated(question, began, until)
        text = self.decode(generated[0, len(question.input_ids) :].tolist())
        ended = self.clock()
        self._last = ended - began
        if self._agreed(ended > until):  # it was cut off
            return None
        return Answer(prompt=question.prompt, answer=text, expected=question.expected)

    def _agreed(self, holds: bool) -> bool:
        """What holds on rank 0, where ranks ask together."""
        return holds if self.together is None else bool(self.together.agree([holds])[0])

    def _generated(self, question: Question, began: float, until: float) -> torch.Tensor:
        """The question and the answer to it as tokens, which may be cut off. Shape (1, tokens)."""
        generate = cast("Callable[..., torch.Tensor]", self.model.generate)
        generation = copy.copy(self.generation)
        if self.together is None:
            ids = torch.tensor([question.input_ids], device=self.device)
            generation.max_time = until - began
            return generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=generation)
        chosen = _ChosenByRankZero(self.together.agree, lambda: self.clock() > until)
        # generate takes the device of the first parameter for the one that computes, which is another where
        # parameters are offloaded; tensors of its own it keeps where the ids are.
        ids = torch.tensor([question.input_ids])
        with base_of(self.model).register_forward_pre_hook(
            lambda _, args, inputs: (args, move_to_device(inputs, self.device)), with_kwargs=True
        ):
            return generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=generation,
                logits_processor=LogitsProcessorList([chosen]),
                stopping_criteria=StoppingCriteriaList([_StoppedByRankZero(chosen)]),
            )

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """The model may generate in the block; afterwards mode, attention and random state are as before."""
        kind = self.device.type
        was_training = self.model.training
        self.model.eval()
        try:
            with (
                torch.random.fork_rng(devices=[self.device] if kind == "cuda" else []),
                # Each length of a cache would be compiled anew.
                torch.compiler.set_stance("force_eager") if self.compiled else nullcontext(),
                attending_as_loaded(base_of(self.model), self.attention),
                torch.autocast(
                    kind,
                    dtype=torch.bfloat16,
                    enabled=self.dtype == "bf16",
                    cache_enabled=self.together is None,  # as in `Forward`
                ),
                torch.no_grad(),
            ):
                yield
        finally:
            self.model.train(was_training)


class _ChosenByRankZero(LogitsProcessor):
    """Leaves the token that is the likeliest on rank 0, and finds out whether rank 0 has time for another."""

    def __init__(self, agree: Callable[[Sequence[float]], list[float]], over: Callable[[], bool]) -> None:
        self._agree = agree
        self._over = over
        self.over = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores for the next token, all but one minus infinity. Shape (1, vocabulary)."""
        del input_ids
        token, over = self._agree([int(scores.argmax()), self._over()])
        self.over = bool(over)
        left = torch.full_like(scores, -torch.inf)
        left[:, int(token)] = 0.0
        return left


class _StoppedByRankZero(StoppingCriteria):
    """Stops where rank 0 has no more time."""

    def __init__(self, chosen: _ChosenByRankZero) -> None:
        self._chosen = chosen

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """Whether each answer is over. Shape (1,)."""
        del scores
        return torch.full((len(input_ids),), self._chosen.over, device=input_ids.device)


def sampler_of(job: TrainingJob, loaded: Loaded, forward: Forward) -> Sampler:
    """What asks the model of a job: on rank 0, and where each holds a part of the model on all together."""
    spec, parallel = job.prepared.spec, forward.parallel
    tokenizer = loaded.inference.tokenizer
    labels = spec.trained_task == "classification"  # which may be special tokens

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=not labels)).strip()

    return Sampler(
        model=loaded.model,
        questions=job.prepared.questions if parallel.rank == 0 or parallel.in_parts else (),
        decode=decode,
        generation=greedy(loaded.inference.generation, spec.longest_sample),
        attention=loaded.attention,
        device=parallel.device,
        dtype=forward.dtype,
        compiled=spec.torch_compile is not None and spec.torch_compile.enabled,
        together=_together(forward) if parallel.in_parts else None,
    )


def _together(forward: Forward) -> Together:
    parallel, objective = forward.parallel, forward.module
    assert isinstance(objective, Objective)

    def agree(values: Sequence[float]) -> list[float]:
        return parallel.sum(values if parallel.rank == 0 else [0.0] * len(values))

    return Together(agree, objective.run)
