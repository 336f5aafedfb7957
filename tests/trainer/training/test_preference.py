"""Direct preference optimisation beside TRL's DPOTrainer, on several devices, and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import PeftModel
from pydantic import JsonValue
from safetensors.numpy import load_file
from tests.trainer.training.test_against_trl import model_for_trl
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Fields,
    column,
    files_of,
    job_of,
    lines_of,
    some_rows,
    train_here,
    train_in_processes,
)
from tests.trainer.trl_preference import METRICS, check_that_steps_are_those_of, dpo_settings, metric
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl.trainer.dpo_trainer import DPOTrainer

from finetune_api.failure import FineTuneError
from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.data.batches import row_order
from finetune_trainer.data.pairs import PairRows
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.training.job import TrainingJob

BETA = 0.5
PREFERENCES: Fields = {"task": "preference_tuning", "preference_tuning_config": {"beta": BETA}}
WAYS: dict[str, Fields] = {
    "lora": LORA | {"learning_rate": 5e-3} | PREFERENCES,
    "full": FULL | {"learning_rate": 1e-4} | PREFERENCES,
}
PARTS = Sharding(kind="fsdp")


def some_pairs(count: int, seed: int = 0) -> PairRows:
    """Pairs of random answers of 2 to 30 tokens to random prompts of 2 to 30 tokens."""
    random = np.random.default_rng(seed)
    ids, trained, lengths = [], [], []
    for _ in range(count):
        prompt = random.integers(4, 1024, random.integers(2, 31))
        for _ in range(2):
            answer = random.integers(4, 1024, random.integers(2, 31))
            ids.append(np.concatenate([prompt, answer]))
            trained.append(np.repeat([False, True], [len(prompt), len(answer)]))
            lengths.append(len(ids[-1]))
    return PairRows(
        TokenizedRows(
            input_ids=np.concatenate(ids).astype(np.int32),
            trained=np.concatenate(trained),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            lines=np.repeat(np.arange(1, count + 1), 2),
        )
    )


PAIRS, VALIDATION_PAIRS = some_pairs(21), some_pairs(7, seed=1)


class TokensDPOTrainer(DPOTrainer):
    """DPOTrainer for rows that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_arguments: object, **_more: object) -> Dataset:
        return dataset


def pairs_for_trl(job: TrainingJob) -> Dataset:
    """The pairs of all epochs in the job's order."""
    rows, numbers = job.prepared.train, job.prepared.numbers
    assert isinstance(rows, PairRows)
    order = [
        int(index)
        for epoch in range(numbers.total_epochs)
        for index in row_order(job.prepared.spec.seed, epoch, len(rows))
    ]
    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for index in order:
        (chosen, answers), (rejected, others) = (rows.documents.row(2 * index + each) for each in range(2))
        columns["prompt_ids"].append(chosen[~answers].tolist())
        columns["chosen_ids"].append(chosen[answers].tolist())
        columns["rejected_ids"].append(rejected[others].tolist())
    return Dataset.from_dict(columns)


@pytest.mark.parametrize("way", WAYS)
def test_losses_rewards_and_gradient_norms_are_those_of_trls_dpo_trainer(
    way: str, tiny_model: Path, tmp_path: Path
) -> None:
    job = job_of(
        tiny_model,
        tmp_path / "ours",
        WAYS[way],
        train=some_pairs(24, seed=5),
        validation=None,
        num_epochs=4,
        train_batch_size_per_device=4,
        gradient_accumulation_steps=2,
    )
    train_here(job)
    trainer = TokensDPOTrainer(
        model=model_for_trl(job, tiny_model),
        args=dpo_settings(job, tmp_path / "trl"),
        train_dataset=pairs_for_trl(job),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    trainer.train()

    check_that_steps_are_those_of(trainer, tmp_path / "ours", steps=12)


def test_before_training_a_pair_costs_the_logarithm_of_two(tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, WAYS["lora"], train=PAIRS, validation=None, num_epochs=1))
    assert column(tmp_path, "loss")[0] == pytest.approx(np.log(2), abs=1e-6)
    assert metric(tmp_path, "rewards/margins")[0] == pytest.approx(0, abs=1e-5)


def alone(model: Path, run: Path, way: str, **fields: JsonValue) -> TrainingJob:
    """Steps of 8 pairs on one device; the last step of an epoch has 5."""
    batches: Fields = {"train_batch_size_per_device": 2, "gradient_accumulation_steps": 4}
    return job_of(model, run, WAYS[way] | batches | fields, train=PAIRS, validation=VALIDATION_PAIRS)


@pytest.mark.parametrize("sharding", [COPIES, PARTS], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("way", WAYS)
def test_two_devices_train_what_one_does(
    way: str, sharding: Sharding, tiny_model: Path, tmp_path: Path
) -> None:
    two = job_of(
        tiny_model,
        tmp_path / "two",
        WAYS[way],
        train=PAIRS,
        validation=VALIDATION_PAIRS,
        sharding=sharding,
        num_devices=2,
        train_batch_size_per_device=2,
        gradient_accumulation_steps=2,
    )
    train_here(alone(tiny_model, tmp_path / "one", way))
    train_in_processes(two)

    for name in ("loss", "gradNorm", "evalLoss"):
        expected = column(tmp_path / "one", name)
        assert len(expected) == (3 if name == "evalLoss" else 9)
        # Norms are about 7, of which fp32 has seven digits.
        assert column(tmp_path / "two", name) == pytest.approx(expected, rel=5e-6, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(way: str, tiny_model: Path, tmp_path: Path) -> None:
    train_here(alone(tiny_model, tmp_path / "whole", way))
    train_here(alone(tiny_model, tmp_path / "stopped", way), stop_after=4)
    train_here(alone(tiny_model, tmp_path / "stopped", way))

    assert column(tmp_path / "stopped", "loss") == column(tmp_path / "whole", "loss")
    assert files_of(tmp_path / "stopped" / "epoch-2") == files_of(tmp_path / "whole" / "epoch-2")


def test_a_run_does_not_go_on_with_other_validation_rows(tiny_model: Path, tmp_path: Path) -> None:
    train_here(alone(tiny_model, tmp_path, "lora"), stop_after=4)
    fields: Fields = {"train_batch_size_per_device": 2, "gradient_accumulation_steps": 4}
    other = job_of(tiny_model, tmp_path, WAYS["lora"] | fields, train=PAIRS, validation=some_pairs(7, seed=2))
    with pytest.raises(FineTuneError, match=r"spec\.valid_path: the rows are not those"):
        train_here(other)


@pytest.mark.parametrize("fields", [{"eval_batch_size_per_device": 1}, {"padding": "max_length"}], ids=str)
def test_the_validation_loss_depends_neither_on_the_batch_size_nor_on_padding(
    fields: Fields, tiny_model: Path, tmp_path: Path
) -> None:
    train_here(alone(tiny_model, tmp_path / "one", "full", num_epochs=1, eval_batch_size_per_device=4))
    train_here(alone(tiny_model, tmp_path / "other", "full", num_epochs=1, **fields))
    assert column(tmp_path / "other", "evalLoss") == pytest.approx(
        column(tmp_path / "one", "evalLoss"), abs=1e-5
    )


def test_perplexity_is_nothing_that_pairs_have(tiny_model: Path, tmp_path: Path) -> None:
    records = train_here(alone(tiny_model, tmp_path, "lora", num_epochs=1))
    evaluation = records[-1].evaluation
    assert evaluation is not None
    assert evaluation.perplexity is None
    assert set(evaluation.metrics) == set(METRICS)
    assert records[-1].checkpoints[-1].eval_loss == evaluation.loss


def test_how_far_the_reference_is_computed_is_told_before_the_first_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    job = alone(tiny_model, tmp_path, "lora", num_epochs=1, eval_batch_size_per_device=4, eval_first=True)
    records = train_here(job)
    said = [record.doing for record in records if record.progress is None]

    assert said == [
        *(
            f"computing reference log-probabilities: {percent}%"
            for percent in (0, 12, 25, 38, 50, 62, 75, 88, 100)
        ),
        "validating the model before training",
    ]
    assert {record.doing for record in records[len(said) :]} == {None}


def test_a_run_that_begins_with_an_adapter_is_compared_with_the_model_that_has_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    tuned = train_here(job_of(tiny_model, tmp_path / "tuned", LORA | {"learning_rate": 5e-3}))
    [adapter] = [checkpoint.path for checkpoint in tuned[-1].checkpoints if checkpoint.best]
    begun_with: Fields = {"initial_adapter_model_ckpt_path": adapter, "eval_first": True, "num_epochs": 1}
    run = tmp_path / "preferred"
    train_here(alone(tiny_model, run, "lora", **begun_with))

    assert lines_of(run)[0]["evalLoss"] == pytest.approx(np.log(2), abs=1e-6)
    assert column(run, "loss")[0] == pytest.approx(np.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert metric(run, name)[0] == pytest.approx(0, abs=1e-5)
    kept = load_file(run / "epoch-0" / "state" / "reference.safetensors")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    of_base = log_probabilities(base, PAIRS.documents)
    of_both = log_probabilities(PeftModel.from_pretrained(base, adapter), PAIRS.documents)
    assert kept["train"] == pytest.approx(of_both, abs=1e-4)
    assert kept["train"] != pytest.approx(of_base, abs=1e-1)


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel | PeftModel, documents: TokenizedRows) -> NDArray[np.float32]:
    """Of each document the sum over the tokens that count, by the model's own scores; shape (documents,)."""
    model.eval()
    sums = []
    for ids, trained in (documents.row(index) for index in range(len(documents))):
        tokens = torch.from_numpy(ids.astype(np.int64))
        each = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
        of_tokens = each.gather(1, tokens[1:, None])[:, 0]
        sums.append(float(of_tokens[torch.from_numpy(trained[1:])].sum()))
    return np.array(sums, dtype=np.float32)


def test_rows_of_conversations_weigh_as_their_tokens_and_pairs_as_one() -> None:
    rows = some_rows(5)
    assert rows.weights.tolist() == rows.predicted.tolist()
    assert PAIRS.weights.tolist() == [1] * len(PAIRS)
    assert PAIRS.predicted.sum() == PAIRS.documents.predicted.sum()
