"""A real model on real rows: SmolLM2-135M-Instruct, and questions about Python's standard library."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import cast

import peft
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from datasets import Dataset
from peft import PeftModel
from pydantic import JsonValue
from tests.trainer.model_directories import set_keys
from tests.trainer.training_jobs import column
from tests.trainer.trl_settings import settings
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    pipeline,
)
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.manifest import read_spec
from finetune_trainer.data.batches import row_order
from finetune_trainer.data.reading import read_rows
from finetune_trainer.data.rows import Row
from finetune_trainer.export.merge import merge
from finetune_trainer.model.load import load_model
from finetune_trainer.model.quantization import quantized_bytes
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import Outcome, Start, TrainingJob, Worker
from finetune_trainer.training.loop import train

ROWS, STEPS = 16, 2
LONGEST = 60
QUESTION = "What is the capital of France? Answer in one short sentence."


@pytest.fixture(scope="module")
def rows(stdlib_train: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 16 training rows."""
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    file.write_text("".join(stdlib_train.read_text().splitlines(keepends=True)[:ROWS]))
    return file


@pytest.fixture(scope="module")
def endless(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with the generation config of its base model, which never stops at the end of a turn."""
    base = tmp_path_factory.mktemp("endless") / "base"
    shutil.copytree(smollm2, base, copy_function=os.symlink)
    (base / "generation_config.json").unlink()
    shutil.copy(smollm2 / "generation_config.json", base)
    set_keys(base / "generation_config.json", eos_token_id=0, pad_token_id=None)
    return base


@pytest.fixture(scope="module")
def job(endless: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A finished job: two steps of all rows, each in four micro-batches."""
    return finished_job(endless, rows, tmp_path_factory.mktemp("smollm2") / "run", {"r": 8})


def finished_job(
    model: Path, rows: Path, run_directory: Path, lora: JsonValue, *, quantization: str | None = None
) -> TrainingJob:
    spec = read_spec(
        {
            "model_id": str(model),
            "train_path": str(rows),
            "task": "instruction_tuning",
            "lora_config": lora,
            "quantization": quantization,
            "learning_rate": 1e-3 if lora is not None else 1e-5,
            "lr_scheduler_type": "constant",
            "num_warmup_steps": 0,
            "num_epochs": STEPS,
            "checkpoint_every_n_epochs": STEPS,
            "train_batch_size_per_device": 4,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": False,
        }
    )
    prepared = prepare(spec)
    run = RunDirectory.open(str(run_directory))
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
    read = read_rows(str(rows), "instruction_tuning")
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
    assert column(job.start.run_directory, "loss") == pytest.approx(logged["loss"], rel=1e-5)
    assert column(job.start.run_directory, "gradNorm") == pytest.approx(logged["grad_norm"], rel=1e-5)


@torch.inference_mode()
def test_its_adapter_loads_with_plain_peft_and_the_merged_model_answers_as_it_does(
    adapter: Path, smollm2: Path, stdlib_validation: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    held_out = read_rows(str(stdlib_validation), "instruction_tuning")
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


def test_without_what_a_checkpoint_says_its_answers_do_not_end(endless: Path) -> None:
    assert not ends(load(endless), endless, max_new_tokens=LONGEST)


def test_its_answers_end_by_themselves_with_the_adapter_and_merged(
    adapter: Path, endless: Path, tmp_path: Path
) -> None:
    generation = GenerationConfig.from_pretrained(adapter, max_new_tokens=LONGEST)
    assert ends(PeftModel.from_pretrained(load(endless), str(adapter)), adapter, generation_config=generation)

    merge(str(adapter), tmp_path / "merged")
    check_that_answers_end(tmp_path / "merged")


def test_its_answers_end_by_themselves_trained_in_full(endless: Path, rows: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(rows.read_text().splitlines(keepends=True)[:4]))
    finished_job(endless, few, tmp_path / "run", None)

    check_that_answers_end(tmp_path / "run" / f"epoch-{STEPS - 1}")


def check_that_answers_end(checkpoint: Path) -> None:
    """Of plain `generate` and of a pipeline, which are told nothing."""
    assert ends(load(checkpoint), checkpoint, max_new_tokens=LONGEST)
    pipe = pipeline("text-generation", model=str(checkpoint), device="cpu")
    [said] = pipe([{"role": "user", "content": QUESTION}], max_new_tokens=LONGEST, do_sample=False)
    answer = said["generated_text"][-1]["content"]
    assert answer
    assert "<|im_" not in answer


def ends(model: PreTrainedModel | PeftModel, checkpoint: Path, **arguments: object) -> bool:
    """Whether an answer of plain `generate` ends before it has as many tokens as it may."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert isinstance(prompt, BatchEncoding)
    answer = model.generate(**prompt, do_sample=False, **arguments)[0, prompt["input_ids"].shape[1] :]  # type: ignore[operator]
    return len(answer) < LONGEST


def test_on_a_base_in_4_bits_the_loss_falls_as_on_the_full_one(
    job: TrainingJob, smollm2: Path, rows: Path, tmp_path: Path
) -> None:
    quantized = finished_job(smollm2, rows, tmp_path / "run", {"r": 8}, quantization="nf4")

    falls = []
    for each in (job, quantized):
        first, second = column(each.start.run_directory, "loss")
        falls.append(second / first)
    assert falls[1] == pytest.approx(falls[0], rel=0.05)
    assert falls[0] < 0.95, "the loss hardly falls"

    base = load_model(quantized.prepared.spec, dtype="bf16", on_gpu=False).get_submodule("base_model.model")
    held = 0
    for layer in base.modules():
        if isinstance(layer, Linear4bit):
            state = cast("Params4bit", layer.weight).quant_state
            tables = (state.absmax, state.offset, state.code, state.state2.absmax, state.state2.code)
            held += layer.weight.nbytes + sum(table.nbytes for table in tables)
    assert held == pytest.approx(quantized_bytes(quantized.prepared.shape.quantized_parameters), rel=0.01)
    assert 0.25 < held / (2 * quantized.prepared.shape.quantized_parameters) < 0.26
