"""What the files of a model say before a device is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from tests.trainer.model_directories import copy_of, set_keys
from tests.trainer.training_jobs import FULL, LORA, Fields, column, job_of, spec_of, train_here
from transformers import AutoModelForCausalLM

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.export.merge import merge
from finetune_trainer.model.load import load_config, load_generation_config, load_model, load_tokenizer, shape
from finetune_trainer.model.source import fetch_model
from finetune_trainer.storage.open import open_storage

QUANTIZED: dict[str, JsonValue] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
}


def refused(check: Callable[[], object]) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised:
        check()
    return raised.value


def planned(model: Path | str, way: Fields = LORA, **fields: JsonValue) -> tuple[str, ...]:
    """The warnings of a plan, which reads no weights."""
    spec = spec_of(Path(model), way, **fields)
    load_tokenizer(spec)
    return shape(spec, load_config(spec)).warnings


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("adapter") / "run"
    train_here(job_of(tiny_model, run, LORA, num_epochs=1, learning_rate=1e-2))
    return run / "epoch-0"


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_model_is_refused_by_its_configuration(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "config.json", quantization_config=QUANTIZED[method])

    error = refused(lambda: planned(model))

    assert error.failure_class is FailureClass.INVALID_SPEC
    assert str(error) == (
        f"spec.model_id: {model} is quantized ({method}), and quantized weights cannot be trained here; give"
        " the model that it was made from, in bf16, fp16 or fp32"
    )


def test_nothing_is_merged_into_a_quantized_base(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_model, tmp_path / "base")
    set_keys(base / "config.json", quantization_config=QUANTIZED["gptq"])
    changed = copy_of(adapter, tmp_path / "adapter")
    set_keys(changed / "adapter_config.json", base_model_name_or_path=str(base))
    assert "is quantized (gptq)" in str(refused(lambda: merge(str(changed), tmp_path / "merged")))


@pytest.mark.parametrize("field", ["model_id", "initial_base_model_ckpt_path"])
def test_an_adapter_in_a_models_place_is_told_where_it_belongs(
    tiny_model: Path, adapter: Path, field: str
) -> None:
    fields: Fields = {} if field == "model_id" else {"initial_base_model_ckpt_path": str(adapter)}
    error = refused(lambda: planned(adapter if field == "model_id" else tiny_model, LORA, **fields))
    assert error.failure_class is FailureClass.MODEL_NOT_FOUND
    assert str(error) == (
        f"spec.{field}: {adapter} is an adapter of {tiny_model}, not a model; give {tiny_model} here, and the"
        " adapter in spec.initial_adapter_model_ckpt_path, or merge it with `finetune merge`"
    )


def test_an_adapter_of_an_adapter_is_not_merged(adapter: Path, tmp_path: Path) -> None:
    second = copy_of(adapter, tmp_path / "second")
    set_keys(second / "adapter_config.json", base_model_name_or_path=str(adapter))
    error = refused(lambda: merge(str(second), tmp_path / "merged"))
    assert f"base_model_name_or_path: {adapter} is an adapter of " in str(error)


@pytest.fixture
def leftover(tiny_model: Path, adapter: Path, tmp_path: Path) -> Path:
    """Full weights with an adapter beside them, as a merge into the adapter's own directory leaves them."""
    model = copy_of(tiny_model, tmp_path / "model")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / file, model)
    return model


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_an_adapter_left_beside_a_full_models_weights_is_not_loaded_and_said(
    tiny_model: Path, leftover: Path, tmp_path: Path, way: Fields
) -> None:
    train_here(job_of(tiny_model, tmp_path / "clean", way, num_epochs=1))
    train_here(job_of(leftover, tmp_path / "run", way, num_epochs=1))

    assert column(tmp_path / "run", "loss") == column(tmp_path / "clean", "loss")
    assert (
        f"spec.model_id: {leftover} has an adapter_config.json beside a full model's weights, and is trained"
        " without that adapter; delete it, since transformers loads it with the model"
    ) in planned(leftover, way)
    assert not any("adapter_config.json" in each for each in planned(tiny_model, way))


def test_a_full_checkpoint_of_such_a_base_names_no_place_that_is_gone(leftover: Path, tmp_path: Path) -> None:
    train_here(job_of(leftover, tmp_path / "run", FULL, num_epochs=1))
    assert "finetune-model-" not in (tmp_path / "run/epoch-0/config.json").read_text()
    assert not (tmp_path / "run/epoch-0/adapter_config.json").exists()


def test_a_lora_run_on_such_a_base_merges(leftover: Path, tiny_model: Path, tmp_path: Path) -> None:
    for model, name in ((tiny_model, "clean"), (leftover, "run")):
        train_here(job_of(model, tmp_path / name, LORA, num_epochs=1))
        merge(str(tmp_path / name / "epoch-0"), tmp_path / f"{name}-merged")
    clean, merged = (
        AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-merged").state_dict()
        for name in ("clean", "run")
    )
    assert all(torch.equal(weight, merged[name]) for name, weight in clean.items())


def test_weights_that_the_index_lists_and_are_not_there_are_named(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(model, max_shard_size="200KB")
    index = json.loads((model / "model.safetensors.index.json").read_text())
    gone, *others = sorted(set(index["weight_map"].values()))
    (model / gone).unlink()

    error = refused(lambda: planned(model))

    assert str(error) == (f"spec.model_id: {model} lacks 1 of {len(others) + 1} files of weights: {gone}")


def test_an_index_beside_all_weights_in_one_file_is_not_looked_at(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(spec_of(model, FULL), dtype="fp32", on_gpu=False)


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": 5}', '{"weight_map": null}', '{"weight_map": {"a": []}}']
)
def test_an_index_that_lists_no_files_is_told(tiny_model: Path, tmp_path: Path, content: str) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(content)

    error = refused(lambda: load_model(spec_of(model, FULL), dtype="fp32", on_gpu=False))

    assert str(error) == (
        f"spec.model_id: {index} has no weight_map, which names the file of each weight; copy it there again"
    )


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("eos_token_id", "<|im_end|>", "a token's id or a list of them"),
        ("eos_token_id", [["a"]], "a token's id or a list of them"),
        ("stop_strings", 5, "a text or a list of them"),
        ("stop_strings", ["a", 1], "a text or a list of them"),
    ],
)
def test_ends_of_generation_that_are_none_are_told(
    tiny_model: Path, tmp_path: Path, name: str, value: JsonValue, right: str
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "generation_config.json", **{name: value})
    assert str(refused(lambda: load_generation_config(spec_of(model, LORA)))) == (
        f"spec.model_id: {model} has a generation_config.json with {name} {value!r}; it must be {right}"
    )


NUMBERS: dict[str, JsonValue] = {"temperature": "hot", "top_p": [0.9], "top_k": {}, "max_length": True}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_the_generation_config_that_is_none_is_told(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "generation_config.json", **{name: NUMBERS[name]})
    assert str(refused(lambda: load_generation_config(spec_of(model, LORA)))) == (
        f"spec.model_id: {model} has a generation_config.json with {name} {NUMBERS[name]!r}; it must be a"
        " number"
    )


@pytest.mark.parametrize("value", ["nf4", 4, ["gptq"]])
def test_a_quantization_that_is_no_object_is_told(tiny_model: Path, tmp_path: Path, value: JsonValue) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "config.json", quantization_config=value)
    assert str(refused(lambda: load_config(spec_of(model, LORA)))) == (
        f"spec.model_id: {model} has a config.json with quantization_config {value!r}; it must be an object"
        " with quant_method, and not be there where the weights are not quantized"
    )


def test_shards_in_object_storage_are_missed_before_any_is_downloaded(
    tiny_model: Path, tmp_path: Path, s3_bucket: str
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    storage = open_storage(f"s3://{s3_bucket}")
    with storage.staging("tiny") as staging:
        shutil.copytree(model, staging, dirs_exist_ok=True)
        storage.publish(staging, "tiny", last="config.json")
    source = f"s3://{s3_bucket}/tiny"

    assert str(refused(lambda: fetch_model(source, "spec.model_id", weights=False))) == (
        f"spec.model_id: {source} lacks 1 of 1 files of weights: model-00002-of-00002.safetensors"
    )
