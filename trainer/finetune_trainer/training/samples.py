"""Answers of the model as it is to the questions of `sample_prompts`; they change nothing of the training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig

from finetune_api.numbers import ResolvedPrecision
from finetune_trainer.checkpoint.inference import greedy
from finetune_trainer.data.questions import Question
from finetune_trainer.model.attention import attending_as_loaded
from finetune_trainer.report.metrics import Answer, Answers
from finetune_trainer.tasks.objective import Model, base_of
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
    clock: Callable[[], float] = time.monotonic
    _spent: float = 0.0
    _last: float = 0.0
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def ask(self) -> Answers | None:
        """The answers of the model as it is; None where nothing is asked.

        Never raises for what the model or the device meets: then there is a problem instead of answers.
        """
        if not self.questions:
            return None
        started = self.clock()
        until = started + allowance(started - self._began, self._spent)
        answers = []
        problem = None
        try:
            with self._undisturbed():
                for question in self.questions:
                    answer = self._answer(question, until)
                    if answer is None:
                        break
                    answers.append(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            problem = str(error).strip().partition("\n")[0] or type(error).__name__
        seconds = self.clock() - started
        self._spent += seconds
        return Answers(answers, len(self.questions) - len(answers), seconds, problem)

    def _answer(self, question: Question, until: float) -> Answer | None:
        """The answer, or None where there is too little time for it."""
        began = self.clock()
        if began + self._last > until:
            return None
        ids = torch.tensor([question.input_ids], device=self.device)
        generation = copy.copy(self.generation)
        generation.max_time = until - began
        generated = self.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=generation
        )
        text = self.decode(generated[0, ids.shape[1] :].tolist())
        ended = self.clock()
        self._last = ended - began
        if ended > until:  # it was cut off
            return None
        return Answer(prompt=question.prompt, answer=text, expected=question.expected)

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
                torch.autocast(kind, dtype=torch.bfloat16, enabled=self.dtype == "bf16"),
                torch.no_grad(),
            ):
                yield
        finally:
            self.model.train(was_training)


def sampler_of(job: TrainingJob, loaded: Loaded, forward: Forward) -> Sampler:
    """What asks the model of a job. Only rank 0 does, and none where each device holds a part of the model.

    There all ranks would have to take part in every pass.
    """
    spec, parallel = job.prepared.spec, forward.parallel
    tokenizer = loaded.inference.tokenizer
    labels = spec.trained_task == "classification"  # which may be special tokens

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=not labels)).strip()

    return Sampler(
        model=loaded.model,
        questions=job.prepared.questions if parallel.rank == 0 and not parallel.in_parts else (),
        decode=decode,
        generation=greedy(loaded.inference.generation, spec.longest_sample),
        attention=loaded.attention,
        device=parallel.device,
        dtype=forward.dtype,
        compiled=spec.torch_compile is not None and spec.torch_compile.enabled,
    )
