"""Whether jobs fit, in LLMForge's style, over published sizes, devices and DeepSpeed files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from bench.model_shapes import config_of, write_description
from bench.tracked_memory import model_for, shape_of
from pydantic import JsonValue

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_spec
from finetune_api.numbers import resolved_dtype
from finetune_api.sharding import COPIES
from finetune_trainer.plan.fit import (
    Job,
    check_fits,
    check_prepared,
    device_of,
    fitted,
    job_of,
    required,
    with_checkpointing,
)
from finetune_trainer.plan.layer_memory import LayerMemory
from finetune_trainer.plan.memory import Lengths
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.plan.sharding import Device, Resources

Fields = dict[str, JsonValue]

LORA: Fields = {
    "lora_config": {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
}
ATTENTION: Fields = {"lora_config": {"r": 8, "target_modules": ["q_proj", "v_proj", "k_proj", "o_proj"]}}
FULL: Fields = {}


def file(
    model: str, accelerator: str, devices: int, deepspeed: str | None, way: Fields, **fields: JsonValue
) -> tuple[str, Fields]:
    """A training file as LLMForge's own are."""
    document: Fields = {
        "model_id": model,
        "train_path": "s3://bucket/train.jsonl",
        "valid_path": "s3://bucket/valid.jsonl",
        "context_length": 512,
        "num_devices": devices,
        "num_epochs": 3,
        "train_batch_size_per_device": 16,
        "eval_batch_size_per_device": 16,
        "learning_rate": 1e-4,
        "worker_resources": {f"accelerator_type:{accelerator}": 0.001},
        **way,
        **fields,
    }
    if deepspeed is not None:
        document["deepspeed"] = {"config_path": f"deepspeed_configs/{deepspeed}.json"}
    return model, document


FILES = {
    "7b lora": file("llama-2-7b", "A10G", 16, "zero_3_offload_optim+param", LORA),
    "7b full": file("llama-2-7b", "A10G", 16, "zero_3_llama_2_7b", FULL),
    "13b lora": file("llama-2-13b", "A10G", 16, "zero_3_llama_2_13b", LORA, train_batch_size_per_device=8),
    "13b full": file("llama-2-13b", "A10G", 16, "zero_3_llama_2_13b", FULL),
    "70b lora": file("llama-2-70b", "A10G", 32, "zero_3_llama_2_70b", LORA, train_batch_size_per_device=8),
    "70b full": file("llama-2-70b", "A100-80G", 16, "zero_3_llama_2_70b_nvme_offload", FULL),
    "8b lora": file("llama-3-8b", "A10G", 16, "zero_3", LORA, context_length=4096),
    "8b full": file("llama-3-8b", "A100-80G", 8, "zero_3_offload_optim", FULL, context_length=4096),
    "llama 3 70b lora": file("llama-3-70b", "A100-80G", 8, "zero_3", LORA, context_length=4096),
    "mistral without a file": file("mistral-7b", "L4", 4, None, LORA, context_length=8192),
    "mistral full on stage 2": file("mistral-7b", "A100-80G", 4, "zero_2", FULL),
    "mixtral lora": file("mixtral-8x7b", "A100-80G", 8, "zero_3_hpz", ATTENTION, no_gradient_checkpoint=True),
}


@cache
def job_for(name: str) -> tuple[Job, Device]:
    model, document = FILES[name]
    spec = read_spec(document)
    device = device_of(spec)
    assert device is not None
    dtype = resolved_dtype(spec, on_gpu=True)
    config = config_of(model)
    length = spec.context_length or 512
    lengths = Lengths(length, length, padded=False, longest_validated=length)
    unit = config.hidden_size
    # As of a Llama; counting takes seconds for each.
    layer = LayerMemory(53 * unit, 2 * unit, 22 * unit, 82 * unit, 38 * unit, 4 * unit, 0, 0, 3 * unit)
    return Job(
        spec, shape_of(model_for(spec, config, dtype), config), layer, lengths, dtype, on_gpu=True
    ), device


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_or_is_refused_with_settings_that_fit(name: str) -> None:
    job, device = job_for(name)

    settings = fitted(job, device)

    if settings is None:
        check_fits(job, device)
        assert required(job.needs(job.sharding(device), device)) <= device.memory
        return
    with pytest.raises(FineTuneError) as raised:
        check_fits(job, device)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    assert settings.words in str(raised.value)
    changed = replace(job, spec=settings.spec)
    check_fits(changed, device)
    # What is written is a job, with as many rows in a step.
    again = read_spec(settings.spec.model_dump(mode="json", exclude_unset=True))
    assert again == settings.spec
    rows = [
        (each.train_batch_size_per_device or 0) * each.gradient_accumulation_steps * each.num_devices
        for each in (job.spec, settings.spec)
    ]
    assert rows[0] == rows[1]


def test_some_of_them_fit_and_some_do_not() -> None:
    refused = {name for name in FILES if fitted(*job_for(name)) is not None}

    # A sixteenth of a LoRA's 13 GB fits an A10G; scores of 16 x 4096 tokens over a vocabulary of 128,256 take
    # 12 bytes each, 94 GiB.
    assert "7b lora" not in refused
    assert "8b lora" in refused
    assert 0 < len(refused) < len(FILES)


def test_the_refusal_says_what_is_needed_what_there_is_and_what_would_fit() -> None:
    model, document = FILES["8b lora"]
    job, _ = job_for("8b lora")
    one = {**document, "num_devices": 1, "deepspeed": None, "train_batch_size_per_device": 1}
    alone = replace(job, spec=read_spec(one))
    small = Device("a T4", int(14.5 * 2**30))

    with pytest.raises(FineTuneError) as raised:
        check_fits(alone, small)

    assert model == "llama-3-8b"
    words = str(raised.value)
    assert words.startswith("the job needs ")
    assert "GiB a device, a T4 has 14.5: with " in words
    assert "quantization nf4" in words or "cpu_offload" in words


def test_a_device_that_a_job_names_is_known_with_its_memory() -> None:
    _, document = FILES["7b lora"]

    assert device_of(read_spec(document)) == Device("an A10G", int(22.0 * 2**30))
    assert device_of(read_spec({**document, "worker_resources": {"accelerator_type:CPU": 0.01}})) is None


def prepared_in(directory: Path, rows: Path, **fields: JsonValue) -> Prepared:
    model = write_description("small llama", directory / "model")
    document: Fields = {"model_id": str(model), "train_path": str(rows), "num_warmup_steps": 1, **fields}
    return prepare(read_spec(document), planning=True)


def card(memory: int) -> Resources:
    return Resources(on_gpu=True, device=Device("a card", memory))


def cpus(memory: int | None) -> Resources:
    return Resources(on_gpu=False, memory=memory)


def test_a_prepared_job_is_refused_on_a_device_that_is_too_small(tmp_path: Path, tiny_rows: Path) -> None:
    prepared = prepared_in(tmp_path, tiny_rows, train_batch_size_per_device=16)
    needs = required(job_of(prepared, None, on_gpu=True).needs(COPIES))

    assert check_prepared(prepared, None, COPIES, card(needs)) == []
    with pytest.raises(FineTuneError) as raised:
        check_prepared(prepared, None, COPIES, card(needs - 2**20))

    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    assert "a card has " in str(raised.value)
    assert "with train_batch_size_per_device 8 and gradient_accumulation_steps 2 it needs" in str(
        raised.value
    )


def keeps(prepared: Prepared, resources: Resources) -> bool:
    """Whether activations are kept, by the plan."""
    decided = with_checkpointing(prepared, None, COPIES, resources)
    recomputes = decided.plan.gradient_checkpointing
    assert recomputes is not None
    assert decided.spec.recomputes_activations is recomputes
    return not recomputes


def needed_with(prepared: Prepared, *, recomputed: bool, on_gpu: bool) -> int:
    spec = prepared.spec.model_copy(update={"gradient_checkpointing": recomputed})
    return required(job_of(replace(prepared, spec=spec), None, on_gpu=on_gpu).needs(COPIES))


def test_activations_are_kept_where_a_device_has_a_tenth_to_spare_with_them(
    tmp_path: Path, tiny_rows: Path
) -> None:
    prepared = prepared_in(tmp_path, tiny_rows, train_batch_size_per_device=16)
    kept = needed_with(prepared, recomputed=False, on_gpu=True)
    assert kept > needed_with(prepared, recomputed=True, on_gpu=True)

    assert keeps(prepared, card(int(kept / 0.9) + 1))
    assert not keeps(prepared, card(int(kept / 0.9) - 1))


def test_on_cpus_they_are_kept_where_half_of_the_memory_is_enough_for_all(
    tmp_path: Path, tiny_rows: Path
) -> None:
    prepared = prepared_in(tmp_path, tiny_rows, train_batch_size_per_device=16, num_devices=2)
    kept = needed_with(prepared, recomputed=False, on_gpu=False)

    assert keeps(prepared, cpus(4 * kept))
    assert not keeps(prepared, cpus(4 * kept - 4))


def test_where_memory_is_not_known_they_are_recomputed(tmp_path: Path, tiny_rows: Path) -> None:
    assert not keeps(prepared_in(tmp_path, tiny_rows), cpus(None))


@pytest.mark.parametrize("fields", [{"gradient_checkpointing": True}, {"no_gradient_checkpoint": False}])
def test_what_a_job_says_of_its_activations_holds(tmp_path: Path, tiny_rows: Path, fields: Fields) -> None:
    assert not keeps(prepared_in(tmp_path, tiny_rows, **fields), cpus(2**60))
    opposite: Fields = {name: not value for name, value in fields.items()}
    assert keeps(prepared_in(tmp_path / "other", tiny_rows, **opposite), cpus(None))


def test_on_cpus_only_what_surely_does_not_fit_is_refused(tmp_path: Path, tiny_rows: Path) -> None:
    prepared = prepared_in(tmp_path, tiny_rows, train_batch_size_per_device=16)
    # Weights, gradients and the two moments; what changes a weight takes some more.
    fixed = 16 * prepared.shape.total_parameters

    assert check_prepared(prepared, None, COPIES, cpus(16 * 2**30)) == []
    [remark] = check_prepared(prepared, None, COPIES, cpus(int(fixed * 1.6)))
    assert "the job may need" in remark
    with pytest.raises(FineTuneError, match="train adapters"):
        check_prepared(prepared, None, COPIES, cpus(fixed // 2))
