"""A base model in 4 bits, and adapters that are trained on it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft import PeftModel
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from tests.trainer.model_directories import copy_of
from tests.trainer.training_jobs import (
    VALIDATION_ROWS,
    Fields,
    column,
    files_of,
    forward_of,
    job_of,
    lines_of,
    saved_in,
    spec_of,
    train_here,
    train_in_processes,
)
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.export.merge import merge
from finetune_trainer.model.load import load_config, load_model, shape
from finetune_trainer.model.quantization import quantized_bytes, quantized_layers
from finetune_trainer.training.evaluate import evaluate

NF4: Fields = {"lora_config": {"r": 8}, "quantization": "nf4", "learning_rate": 1e-2}

# Dettmers et al. 2023, "QLoRA", appendix E.
NF4_VALUES = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs, with a validation and a checkpoint after each."""
    directory = tmp_path_factory.mktemp("nf4") / "run"
    train_here(job_of(tiny_model, directory, NF4))
    return directory


def in_four_bits_config() -> BitsAndBytesConfig:
    """QLoRA's, as its authors write it."""
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def in_four_bits(model: Path) -> PreTrainedModel:
    """The model as transformers alone loads it in 4 bits; it computes in fp32 on every CPU."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, quantization_config=in_four_bits_config(), device_map={"": "cpu"}
    )
    for module in loaded.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return loaded


def made_of(config: PreTrainedConfig, directory: Path | None = None) -> PreTrainedModel:
    """A model with random weights, written to the directory."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # type: ignore[no-untyped-call]
    if directory is not None:
        model.save_pretrained(directory)
    return model


def loss_of(model: PreTrainedModel | PeftModel) -> float:
    return evaluate(forward_of(model), VALIDATION_ROWS, 4).loss


def problem_of(model: Path, lora: JsonValue) -> str:
    spec = spec_of(model, NF4, lora_config=lora)
    with pytest.raises(FineTuneError) as raised:
        shape(spec, load_config(spec))
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    return str(raised.value)


def test_linear_layers_are_held_in_normal_floats_of_4_bits(tiny_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = load_model(spec_of(tiny_model, NF4), dtype="fp32", on_gpu=False)
    base = dict(model.get_submodule("base_model.model").named_modules())
    values = torch.tensor(NF4_VALUES)

    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        weight = cast("Params4bit", base[f"{name}.base_layer"].weight)
        blocks = plain.get_parameter(f"{name}.weight").detach().reshape(-1, 64)
        nearest = (blocks / blocks.abs().amax(dim=1, keepdim=True)).unsqueeze(-1).sub(values).abs().argmin(-1)
        held = torch.stack([weight.data >> 4, weight.data & 0xF], dim=1).reshape(blocks.shape)
        assert torch.equal(held, nearest.to(torch.uint8))
        assert weight.quant_state.nested, "the scales are not quantized again"
    assert base["lm_head"].weight.dtype is base["model.embed_tokens"].weight.dtype is torch.float32
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}


def test_what_is_not_quantized_is_held_in_the_precision_of_the_arithmetic(tiny_model: Path) -> None:
    model = load_model(spec_of(tiny_model, NF4), dtype="bf16", on_gpu=False)
    head = model.get_parameter("base_model.model.lm_head.weight")

    assert head.dtype is torch.bfloat16
    assert {each.compute_dtype for each in model.modules() if isinstance(each, Linear4bit)} == {
        torch.bfloat16
    }
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}


def test_training_is_lora_on_the_values_that_4_bits_stand_for(
    run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rounded = in_four_bits(tiny_model).dequantize(torch.float32)  # type: ignore[no-untyped-call]
    rounded.save_pretrained(copy_of(tiny_model, tmp_path / "rounded"))
    lora = {name: value for name, value in NF4.items() if name != "quantization"}
    train_here(job_of(tmp_path / "rounded", tmp_path / "run", lora))

    for name in ("loss", "gradNorm", "evalLoss"):
        assert column(run, name) == pytest.approx(column(tmp_path / "run", name), abs=1e-5)
    assert column(run, "loss")[-1] < column(run, "loss")[0] - 0.05


def test_validation_changes_nothing_of_training(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, NF4, validation=None, valid_path=None))

    assert column(tmp_path, "loss") == column(run, "loss")


def test_a_stopped_run_resumes_bit_for_bit(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, NF4), stop_after=8)
    train_here(job_of(tiny_model, tmp_path, NF4))

    assert lines_of(tmp_path) == lines_of(run)
    for name in saved_in(run):
        assert files_of(tmp_path / name) == files_of(run / name)


def test_two_devices_train_as_one(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    train_in_processes(job_of(tiny_model, tmp_path, NF4, num_devices=2, train_batch_size_per_device=2))

    for name in ("loss", "gradNorm", "evalLoss"):
        assert column(tmp_path, name) == pytest.approx(column(run, name), abs=1e-5)


def test_peft_alone_loads_the_adapter_on_a_base_in_4_bits_and_on_a_full_one(
    run: Path, tiny_model: Path
) -> None:
    trained = column(run, "evalLoss")[-1]

    quantized = PeftModel.from_pretrained(in_four_bits(tiny_model), str(run / "epoch-2"))
    full = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run / "epoch-2"))

    assert loss_of(quantized) == pytest.approx(trained, abs=1e-5)
    assert loss_of(full) == pytest.approx(trained, rel=0.05)
    assert loss_of(full) != pytest.approx(trained, abs=1e-4)


def test_a_checkpoint_says_how_its_base_was_quantized_and_peft_is_not_told(run: Path) -> None:
    saved = json.loads((run / "epoch-2/quantization_config.json").read_text())
    adapter = json.loads((run / "epoch-2/adapter_config.json").read_text())

    read = BitsAndBytesConfig.from_dict(saved)  # type: ignore[no-untyped-call]
    assert read.to_dict() == in_four_bits_config().to_dict()
    assert not [name for name in adapter if "quant" in name or "bnb" in name]
    assert not (run / "epoch-2/state/weights.pt").exists(), "the base is saved with every checkpoint"


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_dora": True},
        {"lora_bias": True},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"trainable_token_indices": [5, 6, 7]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"init_lora_weights": "gaussian", "use_rslora": True},
    ],
    ids=lambda lora: next(reversed(lora), "plain"),
)
def test_an_adapter_is_merged_into_the_values_it_was_trained_on(
    lora: Fields, tiny_model: Path, tmp_path: Path
) -> None:
    train_here(job_of(tiny_model, tmp_path / "run", {**NF4, "lora_config": lora}, num_epochs=1))
    trained = column(tmp_path / "run", "evalLoss")[-1]

    loaded = PeftModel.from_pretrained(in_four_bits(tiny_model), str(tmp_path / "run/epoch-0"))
    assert loss_of(loaded) == pytest.approx(trained, abs=1e-5)
    if lora.get("lora_bias"):
        return  # which peft merges into layers that have a bias alone
    [remark] = merge(str(tmp_path / "run/epoch-0"), tmp_path / "merged")

    assert remark.startswith("the adapter was trained on a base in 4 bits, and is merged into the values")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loss_of(merged) == pytest.approx(trained, abs=1e-5)
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "tied llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "biases": Qwen2Config(**SMALL),
    "experts": MixtralConfig(**SMALL, num_local_experts=2),
    "conv1d": GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=512),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_the_layers_that_are_counted_are_those_that_transformers_quantizes(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    made_of(config, tmp_path)
    with torch.device("meta"):
        unquantized = made_of(config)
    loaded = in_four_bits(tmp_path)

    held = {name for name, module in loaded.named_modules() if isinstance(module, Linear4bit)}
    assert set(quantized_layers(unquantized)) == held != set()


def test_packing_two_values_a_byte_halves_no_count(tiny_model: Path) -> None:
    quantized, full = (
        shape(spec, load_config(spec))
        for spec in (spec_of(tiny_model, NF4), spec_of(tiny_model, {"lora_config": {"r": 8}}))
    )

    assert quantized.total_parameters == full.total_parameters
    assert quantized.trainable_parameters == full.trainable_parameters
    # Of each of two layers: q and o, k and v, gate, up and down.
    assert quantized.quantized_parameters == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert full.quantized_parameters == 0


@pytest.mark.parametrize("parameters", [64, 1024 * 1024, 1024 * 1024 + 64])
def test_a_quantized_weight_takes_the_bytes_that_are_estimated(parameters: int) -> None:
    weight, state = quantize_4bit(torch.randn(parameters), quant_type="nf4", compress_statistics=True)

    assert quantized_bytes(parameters) == weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes


def test_what_is_no_linear_layer_is_remarked_on(tmp_path: Path) -> None:
    made_of(CONFIGS["experts"], tmp_path)
    spec = spec_of(tmp_path, NF4)

    [warning] = shape(spec, load_config(spec)).warnings
    assert warning == (
        "spec.quantization: 13% of the parameters are held in 4 bits; gate_up_proj, down_proj, weight are no"
        " linear layers, and stay as they are"
    )


def test_a_module_in_4_bits_is_not_trained_in_full(tiny_model: Path) -> None:
    assert problem_of(
        tiny_model, {"target_modules": ["q_proj"], "modules_to_save": ["v_proj", "lm_head"]}
    ) == (
        "spec.lora_config.modules_to_save: v_proj is held in 4 bits by spec.quantization, and cannot be"
        " trained in full; leave one of them out"
    )


def test_a_parameter_in_4_bits_gets_no_adapter_of_its_own(tiny_model: Path) -> None:
    lora: JsonValue = {"target_modules": ["q_proj"], "target_parameters": ["mlp.down_proj.weight"]}
    assert problem_of(tiny_model, lora) == (
        "spec.lora_config.target_parameters: mlp.down_proj.weight is held in 4 bits by spec.quantization;"
        " name its module in target_modules"
    )


def test_biases_of_layers_in_4_bits_are_not_trained(tiny_model: Path, tmp_path: Path) -> None:
    made_of(CONFIGS["biases"], tmp_path)
    spec = spec_of(tiny_model, NF4, lora_config={"bias": "all"})

    assert problem_of(tmp_path, {"bias": "all"}) == (
        "spec.lora_config.bias: all trains biases of layers that spec.quantization holds in 4 bits, for which"
        " bitsandbytes computes no right gradient; take none"
    )
    assert shape(spec, load_config(spec)).warnings == (), "a model without biases trains none"


def test_a_model_without_linear_layers_is_not_quantized(tmp_path: Path) -> None:
    made_of(LlamaConfig(**{**SMALL, "num_hidden_layers": 0}), tmp_path)

    assert problem_of(tmp_path, {}).startswith(
        "spec.quantization: nf4 holds linear layers in 4 bits, and this model has none besides its head"
    )


def test_weights_that_are_missing_are_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(FineTuneError, match=r"has no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(spec_of(model, NF4), dtype="fp32", on_gpu=False)
