"""Classification beside a loop of plain transformers, on several devices, resumed, and used afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import peft
import pytest
import torch
from pydantic import JsonValue
from sklearn import metrics as sklearn_metrics
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    TINY_VOCABULARY,
    Fields,
    column,
    files_of,
    job_of,
    lines_of,
    rows_of,
    train_here,
    train_in_processes,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    get_cosine_schedule_with_warmup,
)

from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.data.batches import row_order, step_rows
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.export.merge import merge
from finetune_trainer.training.job import TrainingJob
from make_tiny_model import make_tiny_model

LABELS = ["[[sport]]", "[[weather]]", "[[science]]"]
METRICS = [
    "accuracy",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "prauc",
    "roc_auc",
    "matthews_corrcoef",
]
CLASSES: Fields = {"classifier_config": {"label_tokens": [*LABELS], "eval_metrics": [*METRICS]}}
WAYS: dict[str, Fields] = {
    "lora": LORA | {"learning_rate": 5e-3} | CLASSES,
    "full": FULL | {"learning_rate": 1e-3} | CLASSES,
}
PARTS = Sharding(kind="fsdp")
TOKENS = [TINY_VOCABULARY + index for index in range(len(LABELS))]
"""Those that the labels get."""


def labelled_rows(count: int, seed: int = 0) -> TokenizedRows:
    """Rows of 5 to 40 random tokens, of which the last is a label and the only one that counts."""
    random = np.random.default_rng(seed)
    rows = rows_of(random.integers(5, 41, count).tolist(), seed=seed)
    last = rows.offsets[1:] - 1
    rows.input_ids[last] = random.choice(TOKENS, count)
    rows.trained[:] = False
    rows.trained[last] = True
    return rows


TRAIN, VALIDATION = labelled_rows(21), labelled_rows(13, seed=1)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose embeddings have no rows for the labels."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=request.param)


def with_labels(model: Path) -> PreTrainedModel:
    """The model as transformers loads it, with rows for the labels: means of what they were written with."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plain.resize_token_embeddings(TINY_VOCABULARY + len(LABELS), mean_resizing=False)
    for module in (plain.get_input_embeddings(), plain.get_output_embeddings()):  # type: ignore[no-untyped-call]
        weight = module.get_parameter("weight").data
        for token, label in zip(TOKENS, LABELS, strict=True):
            weight[token] = weight[tokenizer(label, add_special_tokens=False)["input_ids"]].mean(dim=0)
    return cast("PreTrainedModel", plain)


def with_adapters(plain: PreTrainedModel, *, seed: int) -> peft.PeftModel:
    """The model with PEFT's adapters of all layers, and with the labels' rows to be trained."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=8,
        target_modules="all-linear",
        trainable_token_indices={"embed_tokens": TOKENS, "lm_head": TOKENS},
        task_type="CAUSAL_LM",
    )
    return cast("peft.PeftModel", peft.get_peft_model(plain, config))


def losses_by_hand(job: TrainingJob, model: torch.nn.Module) -> tuple[list[float], list[float]]:
    """The losses and gradient norms of a plain loop over the job's steps, a row at a time."""
    spec, numbers, rows = job.prepared.spec, job.prepared.numbers, job.prepared.train
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=numbers.learning_rate, weight_decay=spec.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, numbers.num_warmup_steps, numbers.total_steps)
    losses, norms = [], []
    for step in range(numbers.total_steps):
        epoch, within = divmod(step, numbers.steps_per_epoch)
        chosen = step_rows(row_order(spec.seed, epoch, len(rows)), within, numbers.effective_batch_size)
        total = torch.zeros(())
        for index in chosen:
            ids = torch.from_numpy(rows.row(int(index))[0].astype(np.int64))
            scores = model(input_ids=ids[None, :-1]).logits[0, -1]
            total = total + torch.nn.functional.cross_entropy(scores, ids[-1])
        loss = total / len(chosen)
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, spec.max_grad_norm)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


def alone(model: Path, run: Path, way: str, **fields: JsonValue) -> TrainingJob:
    """Steps of 8 rows on one device; the last step of an epoch has 5."""
    batches: Fields = {"train_batch_size_per_device": 2, "gradient_accumulation_steps": 4}
    return job_of(model, run, WAYS[way] | batches | fields, train=TRAIN, validation=VALIDATION)


@pytest.mark.parametrize("way", WAYS)
def test_losses_and_gradient_norms_are_those_of_a_loop_of_plain_transformers(
    way: str, model: Path, tmp_path: Path
) -> None:
    job = alone(model, tmp_path, way, num_epochs=4)
    train_here(job)

    plain = with_labels(model)
    reference = with_adapters(plain, seed=job.prepared.spec.seed) if way == "lora" else plain
    losses, norms = losses_by_hand(job, reference)

    assert len(losses) == 12
    assert column(tmp_path, "loss") == pytest.approx(losses, rel=1e-5, abs=1e-5)
    assert column(tmp_path, "gradNorm") == pytest.approx(norms, rel=1e-5, abs=1e-5)


def metrics_of_validations(run: Path) -> list[dict[str, float]]:
    """The metrics of every validation, in order."""
    found = [line["metrics"] for line in lines_of(run) if "evalLoss" in line]
    return cast("list[dict[str, float]]", found)


@torch.no_grad()
def probabilities_by(model: torch.nn.Module, rows: TokenizedRows) -> np.ndarray:
    """The probability of each label for each row, from the scores of the labels' tokens alone."""
    model.eval()
    found = []
    for index in range(len(rows)):
        ids = torch.from_numpy(rows.row(index)[0].astype(np.int64))
        found.append(model(input_ids=ids[None, :-1]).logits[0, -1, TOKENS].softmax(dim=0).numpy())
    return np.stack(found)


def by_scikit_learn(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The metrics by scikit-learn's functions for several classes."""
    said, each = probabilities.argmax(axis=1), np.eye(len(LABELS))[truth]
    return {
        "accuracy": sklearn_metrics.accuracy_score(truth, said),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, said),
        "f1": sklearn_metrics.f1_score(truth, said, average="macro", zero_division=0),
        "precision": sklearn_metrics.precision_score(truth, said, average="macro", zero_division=0),
        "recall": sklearn_metrics.recall_score(truth, said, average="macro", zero_division=0),
        "prauc": sklearn_metrics.average_precision_score(each, probabilities, average="macro"),
        "roc_auc": sklearn_metrics.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro"),
        "matthews_corrcoef": sklearn_metrics.matthews_corrcoef(truth, said),
    }


def loaded(checkpoint: Path) -> torch.nn.Module:
    """A checkpoint, as its users load it."""
    if (checkpoint / "adapter_config.json").is_file():
        return cast("torch.nn.Module", peft.AutoPeftModelForCausalLM.from_pretrained(checkpoint))
    return cast("torch.nn.Module", AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))


@pytest.fixture(scope="module", params=WAYS)
def trained(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainingJob:
    """A job that was trained on one device."""
    job = alone(model, tmp_path_factory.mktemp("run"), request.param)
    train_here(job)
    return job


def test_metrics_are_those_of_scikit_learn_for_what_the_saved_model_says(trained: TrainingJob) -> None:
    run = Path(trained.start.run_directory)
    truth = np.array([TOKENS.index(int(VALIDATION.row(index)[0][-1])) for index in range(len(VALIDATION))])
    validations = metrics_of_validations(run)
    assert len(validations) == 3

    for epoch, measured in enumerate(validations):
        said = probabilities_by(loaded(run / f"epoch-{epoch}"), VALIDATION)
        assert list(measured) == METRICS
        assert measured == pytest.approx(by_scikit_learn(truth, said), abs=1e-6)


def answer_of(
    model: torch.nn.Module, index: int, generation: GenerationConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `generate` answers to a validation row, and the probability of each label by its scores."""
    prompt = torch.from_numpy(VALIDATION.row(index)[0][:-1].astype(np.int64))[None]
    given = {} if generation is None else {"generation_config": generation}
    said = model.generate(prompt, output_scores=True, return_dict_in_generate=True, **given)  # type: ignore[operator]
    return said.sequences[0, prompt.shape[1] :], said.scores[0][0].softmax(dim=0)[TOKENS]


def test_generation_answers_with_the_likeliest_label_and_gives_the_probability_of_each(
    trained: TrainingJob,
) -> None:
    checkpoint = Path(trained.start.run_directory) / "epoch-2"
    model, tokenizer = loaded(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    # A full model is loaded with its own; PEFT loads an adapter's base with the base's.
    lora = trained.prepared.spec.lora_config is not None
    generation = GenerationConfig.from_pretrained(checkpoint) if lora else None

    for index, expected in enumerate(probabilities_by(model, VALIDATION)):
        answer, probabilities = answer_of(model, index, generation)
        assert tokenizer.decode(answer, skip_special_tokens=True) == LABELS[expected.argmax()]
        assert probabilities.numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("trained", ["lora"], indirect=True)
def test_a_merged_adapter_answers_as_the_adapter_does(trained: TrainingJob, tmp_path: Path) -> None:
    adapter, merged = Path(trained.start.run_directory) / "epoch-2", tmp_path / "merged"
    merge(str(adapter), merged)

    model, tokenizer = loaded(merged), AutoTokenizer.from_pretrained(merged)
    expected = probabilities_by(loaded(adapter), VALIDATION)
    assert probabilities_by(model, VALIDATION) == pytest.approx(expected, abs=1e-5)
    assert tokenizer.convert_tokens_to_ids(LABELS) == TOKENS
    answers = [answer_of(model, index) for index in range(len(VALIDATION))]
    assert [tokenizer.decode(answer) for answer, _ in answers] == [
        LABELS[each] for each in expected.argmax(axis=1)
    ]


def test_another_batch_size_validates_the_same(model: Path, tmp_path: Path) -> None:
    for size in (1, 5):
        train_here(alone(model, tmp_path / str(size), "full", eval_batch_size_per_device=size))
    one, five = (column(tmp_path / str(size), "evalLoss") for size in (1, 5))
    assert one == pytest.approx(five, rel=1e-6)
    for left, right in zip(*(metrics_of_validations(tmp_path / str(size)) for size in (1, 5)), strict=True):
        assert left == pytest.approx(right, abs=1e-6)


def test_two_devices_train_and_measure_what_one_does(model: Path, tmp_path: Path) -> None:
    kinds: dict[str, tuple[str, Sharding]] = {
        "lora copies": ("lora", COPIES),
        "full copies": ("full", COPIES),
        "full parts": ("full", PARTS),
    }
    for way in WAYS:
        train_here(alone(model, tmp_path / way, way))
    batches: Fields = {"num_devices": 2, "train_batch_size_per_device": 2, "gradient_accumulation_steps": 2}
    train_in_processes(
        *(
            job_of(
                model,
                tmp_path / name,
                WAYS[way] | batches,
                train=TRAIN,
                validation=VALIDATION,
                sharding=sharding,
            )
            for name, (way, sharding) in kinds.items()
        )
    )

    for name, (way, _) in kinds.items():
        for numbers in ("loss", "gradNorm", "evalLoss"):
            expected = column(tmp_path / way, numbers)
            assert column(tmp_path / name, numbers) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        for left, right in zip(
            metrics_of_validations(tmp_path / name), metrics_of_validations(tmp_path / way), strict=True
        ):
            assert left == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_the_same_to_the_bit(way: str, model: Path, tmp_path: Path) -> None:
    train_here(alone(model, tmp_path / "whole", way))
    train_here(alone(model, tmp_path / "resumed", way), stop_after=4)
    train_here(alone(model, tmp_path / "resumed", way))

    assert lines_of(tmp_path / "resumed") == lines_of(tmp_path / "whole")
    for epoch in range(3):
        assert files_of(tmp_path / "resumed" / f"epoch-{epoch}") == files_of(
            tmp_path / "whole" / f"epoch-{epoch}"
        )
