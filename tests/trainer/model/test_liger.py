"""Liger's kernels: which modules of a model get one. What they compute is in tests/long and tests/gpu."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from tests.trainer.model.architectures import model_of
from tests.trainer.training_jobs import FULL, LORA, Fields, spec_of
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.lora import LoraConfig
from finetune_api.manifest import read_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model.adapters import with_adapters
from finetune_trainer.model.liger import NO_KERNELS, put_kernels
from finetune_trainer.model.load import check_kernels, load_model
from finetune_trainer.tasks.objective import base_of

NORMS = {"model.norm", "input_layernorm", "post_attention_layernorm"}
ONLY: dict[str, JsonValue] = {"rms_norm": False, "rope": False}


def asking(**kwargs: JsonValue) -> FineTuneJobSpec:
    return read_spec({"model_id": "m", "train_path": "t", "liger_kernel": {"kwargs": kwargs}})


def replaced(model: torch.nn.Module) -> set[str]:
    """The modules with a forward method of their own, each of every layer once."""
    names = {name for name, module in model.named_modules() if "forward" in vars(module)}
    by_layer = [{name for name in names if f".layers.{layer}." in name} for layer in range(2)]
    assert len(by_layer[0]) == len(by_layer[1])
    return {re.sub(r"^.*\.layers\.\d+\.", "", name) for name in names}


def of_kind(kind: str, **fields: JsonValue) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **fields)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize(
    ("name", "switches", "places"),
    [
        ("llama", {**ONLY, "swiglu": False, "rms_norm": True}, NORMS),
        ("llama", {**ONLY, "swiglu": False, "rope": True}, {"self_attn"}),
        ("llama", {**ONLY, "swiglu": True}, {"mlp"}),
        ("llama", {"rope": False}, NORMS | {"mlp"}),
        ("llama", {}, NORMS | {"mlp", "self_attn"}),
        ("qwen3", {}, NORMS | {"mlp", "self_attn", "self_attn.q_norm", "self_attn.k_norm"}),
        ("gemma3", {**ONLY, "geglu": True}, {"mlp"}),
        ("mixtral", {**ONLY, "swiglu": True}, {"mlp.experts"}),
    ],
)
def test_each_switch_replaces_what_it_is_for(
    name: str, switches: dict[str, JsonValue], places: set[str]
) -> None:
    model = model_of(name, "sdpa")

    assert put_kernels(model, asking(**switches), on_gpu=True) == []
    assert replaced(model) == places


@pytest.mark.parametrize(
    "fields", [{}, {"liger_kernel": {"enabled": False}}, {"liger_kernel": {}, "torch_compile": {}}], ids=str
)
def test_without_the_switch_and_beside_a_compiler_nothing_is_replaced(fields: Fields) -> None:
    model = model_of("llama", "sdpa")
    spec = read_spec({"model_id": "m", "train_path": "t", **fields})

    assert put_kernels(model, spec, on_gpu=True) == []
    assert replaced(model) == set()


def test_on_a_cpu_nothing_is_replaced_and_a_remark_says_so(tiny_model: Path) -> None:
    spec = spec_of(tiny_model, LORA, liger_kernel={})

    assert check_kernels(spec, on_gpu=False) == [NO_KERNELS]
    assert replaced(base_of(load_model(spec, dtype="fp32", on_gpu=False))) == set()


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_a_model_that_is_loaded_for_a_gpu_has_them(tiny_model: Path, way: Fields) -> None:
    spec = spec_of(tiny_model, way, liger_kernel={})

    assert check_kernels(spec, on_gpu=True) == []
    model = base_of(load_model(spec, dtype="fp32", on_gpu=True))
    assert replaced(model) >= NORMS | {"mlp", "self_attn"}


def test_other_models_of_the_kind_and_the_loss_stay_as_they_are() -> None:
    before, loss = dict(vars(modeling_llama)), torch.nn.functional.cross_entropy
    model = model_of("llama", "sdpa")

    put_kernels(model, asking(cross_entropy=True, fused_linear_cross_entropy=True), on_gpu=True)

    now = vars(modeling_llama)
    assert now.keys() == before.keys()
    assert all(now[name] is before[name] for name in before)
    assert torch.nn.functional.cross_entropy is loss
    assert "forward" not in vars(model)
    assert replaced(model_of("llama", "sdpa")) == set()


def test_what_peft_copies_has_a_kernel_that_computes_with_the_copy() -> None:
    model = model_of("llama", "sdpa")
    put_kernels(model, asking(), on_gpu=True)
    lora = {"layer_replication": [[0, 2], [0, 2]], "modules_to_save": ["norm", "mlp"]}

    adapted = with_adapters(model, LoraConfig.model_validate(lora))

    own = {name: module for name, module in adapted.named_modules() if "forward" in vars(module)}
    assert sum(name.endswith(".mlp.modules_to_save.default") for name in own) == 4
    assert sum(name.endswith(".self_attn") for name in own) == 4
    assert sum(name.endswith(".norm.modules_to_save.default") for name in own) == 1
    assert all(vars(module)["forward"].__self__ is module for module in own.values())


def test_a_switch_that_liger_does_not_have_for_the_architecture_is_an_error_that_lists_those_it_has() -> None:
    with pytest.raises(FineTuneError) as raised:
        put_kernels(of_kind("llama"), asking(geglu=True, layernorm=True, rope=True), on_gpu=True)

    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    assert raised.value.problems == tuple(
        f"spec.liger_kernel.kwargs.{name}: Liger has no such switch for llama; it has rms_norm, rope, swiglu"
        for name in ("geglu", "layernorm")
    )


def test_what_liger_refuses_is_an_error() -> None:
    with pytest.raises(FineTuneError, match=r"Liger's kernels for glm4 cannot be used: .*not available"):
        put_kernels(of_kind("glm4"), asking(rope=True), on_gpu=True)


def test_an_architecture_that_liger_does_not_know_is_a_remark() -> None:
    model = of_kind("bloom")

    assert put_kernels(model, asking(), on_gpu=True) == [
        "spec.liger_kernel has no effect: Liger has no kernels for bloom; PyTorch's own are used"
    ]
    assert replaced(model) == set()


def test_an_architecture_for_which_liger_has_nothing_but_its_losses_is_a_remark() -> None:
    assert put_kernels(
        of_kind("nemotron", num_attention_heads=4, num_key_value_heads=4), asking(), on_gpu=True
    ) == ["spec.liger_kernel has no effect: none of the kernels asked for is for a nemotron"]


@pytest.mark.parametrize(
    ("kind", "switch", "computed"), [("llama", "swiglu", "silu"), ("gemma", "geglu", "gelu_pytorch_tanh")]
)
def test_another_activation_than_the_kernels_keeps_its_own(kind: str, switch: str, computed: str) -> None:
    model = of_kind(kind, hidden_act="relu")

    [remark] = put_kernels(model, asking(), on_gpu=True)

    assert remark == (
        f"spec.liger_kernel.kwargs.{switch} has no effect: the model's activation is relu, and Liger's kernel"
        f" computes {computed}"
    )
    assert replaced(model) == NORMS | {"self_attn"}


def test_without_the_package_an_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)

    with pytest.raises(FineTuneError, match=re.escape("pip install 'finetune-operator[liger]'")):
        put_kernels(of_kind("llama"), asking(), on_gpu=True)
