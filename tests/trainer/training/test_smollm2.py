"""A real model on real rows: SmolLM2-135M-Instruct, and questions about Python's standard library."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tests.trainer.training_jobs import column
from tests.trainer.trl_settings import settings
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.manifest import read_spec
from finetune_trainer.data.batches import row_order
from finetune_trainer.data.rows import Row, read_rows
from finetune_trainer.export.merge import merge
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import Outcome, Start, TrainingJob, Worker
from finetune_trainer.training.loop import train

ROWS, STEPS = 16, 2


@pytest.fixture(scope="module")
def rows(stdlib_train: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 16 training rows."""
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    file.write_text("".join(stdlib_train.read_text().splitlines(keepends=True)[:ROWS]))
    return file


@pytest.fixture(scope="module")
def job(smollm2: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A finished job: two steps of all rows, each in four micro-batches."""
    spec = read_spec(
        {
            "model_id": str(smollm2),
            "train_path": str(rows),
            "task": "instruction_tuning",
            "lora_config": {"r": 8},
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "num_warmup_steps": 0,
            "num_epochs": STEPS,
            "train_batch_size_per_device": 4,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": False,
        }
    )
    prepared = prepare(spec)
    run = RunDirectory.open(str(tmp_path_factory.mktemp("smollm2") / "run"))
    run.claim("kind: FineTuneJob", "a test")
    job = TrainingJob(
        name="smollm2",
        start=Start(spec, "fp32", run.path, None),
        prepared=prepared,
    )
    assert train(job, Worker(0, 1, torch.device("cpu"), lambda _: None, lambda: False)) is Outcome.FINISHED
    return job


@pytest.fixture(scope="module")
def adapter(job: TrainingJob) -> Path:
    return Path(job.start.run_directory) / f"epoch-{STEPS - 1}"


def load(model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return loaded


def prompt_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    asked = [{"role": message.role, "content": message.content} for message in row.messages[:-1]]
    return str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))


def test_loss_and_gradient_norm_are_trls_who_tokenizes_the_rows_itself(
    job: TrainingJob, smollm2: Path, rows: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    read, _ = read_rows(str(rows), "instruction_tuning")
    order = [int(index) for epoch in range(STEPS) for index in row_order(job.prepared.spec.seed, epoch, ROWS)]
    torch.manual_seed(job.prepared.spec.seed)
    model = peft.get_peft_model(
        load(smollm2), peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainer = SFTTrainer(
        model=model,
        args=settings(job, tmp_path),
        train_dataset=Dataset.from_dict(
            {
                "prompt": [prompt_of(read[index], tokenizer) for index in order],
                "completion": [read[index].messages[-1].content for index in order],
            }
        ),
        processing_class=tokenizer,
    )
    trainer.train()

    logged = {
        name: [entry[name] for entry in trainer.state.log_history if name in entry]
        for name in ("loss", "grad_norm")
    }
    assert len(logged["loss"]) == STEPS
    assert column(job.start.run_directory, "loss") == pytest.approx(logged["loss"], abs=1e-5)
    assert column(job.start.run_directory, "gradNorm") == pytest.approx(logged["grad_norm"], rel=1e-5)


@torch.inference_mode()
def test_its_adapter_loads_with_plain_peft_and_the_merged_model_answers_as_it_does(
    adapter: Path, smollm2: Path, stdlib_validation: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    held_out, _ = read_rows(str(stdlib_validation), "instruction_tuning")
    asked = tokenizer(
        [prompt_of(row, tokenizer) for row in held_out[:4]],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )

    def answers(model: PreTrainedModel | PeftModel) -> list[str]:
        generated = model.generate(**asked, max_new_tokens=24, do_sample=False)  # type: ignore[operator]
        return tokenizer.batch_decode(generated[:, asked["input_ids"].shape[1] :])

    merge(str(adapter), tmp_path / "merged")
    base = load(smollm2)
    text = asked["attention_mask"].bool()
    untuned = base(**asked).logits[text]
    tuned = PeftModel.from_pretrained(base, str(adapter))
    merged = load(tmp_path / "merged")

    expected = tuned(**asked).logits[text]
    assert float((untuned - expected).abs().max()) > 1e-1
    assert float((merged(**asked).logits[text] - expected).abs().max()) < 1e-3
    assert answers(merged) == answers(tuned)
