from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from pydantic import JsonValue
from tests.trainer.model_directories import copy_of, set_keys
from tests.trainer.training_jobs import FULL, Fields, column, job_of, spec_of, train_here

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.lora import LoraConfig
from finetune_api.manifest import read_spec
from finetune_trainer.model.adapters import peft_remarks
from finetune_trainer.model.contents import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune_trainer.model.load import load_config, load_model, shape

NAMES = "this model has down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


def problem_of(model: Path, **fields: JsonValue) -> str:
    spec = spec_of(model, FULL, **fields)
    with pytest.raises(FineTuneError) as raised:
        shape(spec, load_config(spec))
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    return str(raised.value)


def warnings_of(model: Path, lora: JsonValue) -> tuple[str, ...]:
    spec = spec_of(model, FULL, lora_config=lora)
    return shape(spec, load_config(spec)).warnings


def test_target_modules_that_match_nothing_are_an_error_with_the_names_there_are(tiny_model: Path) -> None:
    assert (
        problem_of(tiny_model, lora_config={"target_modules": ["query", "c_attn"]})
        == f"spec.lora_config.target_modules: no module is called query, c_attn; {NAMES}"
    )


def test_target_modules_of_which_one_matches_nothing_are_a_warning(tiny_model: Path) -> None:
    assert warnings_of(tiny_model, {"target_modules": ["q_proj", "c_attn"]}) == (
        "spec.lora_config.target_modules: no module is called c_attn; the others are trained",
    )


def test_a_regular_expression_that_matches_nothing_is_an_error_with_the_names_there_are(
    tiny_model: Path,
) -> None:
    # PEFT wants the whole name to match.
    assert (
        problem_of(tiny_model, lora_config={"target_modules": "q_proj"})
        == f"spec.lora_config.target_modules: 'q_proj' matches no module; {NAMES}"
    )


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["plain", "dora"])
def test_in_bf16_adapters_give_the_values_that_they_give_with_pefts_copies_in_fp32(
    tiny_model: Path, lora: JsonValue
) -> None:
    spec = spec_of(tiny_model, FULL, lora_config=lora, dtype="bf16")
    model = load_model(spec, dtype="bf16", on_gpu=False)
    assert isinstance(model, PeftModel)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tokens = torch.arange(4, 40)[None]

    def logits_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=tokens).logits
        logits.float().logsumexp(-1).sum().backward()
        trained = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return [logits, *(gradient.clone() for gradient in trained)]

    ours = logits_and_gradients()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    theirs = logits_and_gradients()

    assert layers
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_what_is_no_regular_expression_is_an_error(tiny_model: Path) -> None:
    assert problem_of(tiny_model, lora_config={"target_modules": ".*(q_proj"}).startswith(
        "spec.lora_config.target_modules: '.*(q_proj' is not a regular expression: "
    )


def test_modules_to_save_that_do_not_exist_are_an_error(tiny_model: Path) -> None:
    assert (
        problem_of(tiny_model, lora_config={"modules_to_save": ["score"]})
        == f"spec.lora_config.modules_to_save: no module is called score; {NAMES}"
    )


def test_no_modules_to_save_are_none(tiny_model: Path) -> None:
    assert warnings_of(tiny_model, {"modules_to_save": []}) == ()


def test_targeted_embeddings_of_a_tied_model_are_a_warning(tiny_model: Path, tied_tiny_model: Path) -> None:
    lora: JsonValue = {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}
    assert warnings_of(tiny_model, lora) == ()
    assert warnings_of(tied_tiny_model, lora) == (
        (
            "spec.lora_config.target_modules: this model ties embed_tokens to lm_head; finetune merge unties"
            " them, and the model grows"
        ),
    )


def test_defaults_that_an_api_server_has_filled_in_make_the_same_adapters(tiny_model: Path) -> None:
    filled_in = read_spec({"model_id": "m", "train_path": "t", "lora_config": {}}).lora_config
    assert filled_in is not None
    written_out = {
        name: value for name, value in filled_in.model_dump(mode="json").items() if value is not None
    }

    adapted = [
        load_model(spec_of(tiny_model, FULL, lora_config=lora), dtype="fp32", on_gpu=False)
        for lora in ({}, written_out)
    ]

    plain, explicit = (
        each.peft_config["default"].to_dict() for each in adapted if isinstance(each, PeftModel)
    )
    assert explicit == plain


def test_what_peft_cannot_adapt_is_an_error_in_pefts_words(tiny_model: Path) -> None:
    assert problem_of(tiny_model, lora_config={"target_modules": ["input_layernorm"]}).startswith(
        "spec.lora_config: Target module LlamaRMSNorm((64,), eps=1e-06) is not supported."
    )


def test_a_token_that_does_not_exist_is_an_error(tiny_model: Path) -> None:
    spec = spec_of(tiny_model, FULL, lora_config={"trainable_token_indices": [99999]})
    with pytest.raises(FineTuneError, match=r"spec.lora_config: .*99999") as raised:
        load_model(spec, dtype="fp32", on_gpu=False)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter with r 4 and lora_alpha 16."""
    run = tmp_path_factory.mktemp("first") / "run"
    train_here(
        job_of(
            tiny_model, run, FULL, lora_config={"r": 4, "lora_alpha": 16}, num_epochs=1, learning_rate=1e-2
        )
    )
    return run / "epoch-0"


def test_a_run_begins_from_an_adapter(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    lora: JsonValue = {"r": 4, "lora_alpha": 16}
    job = job_of(
        tiny_model,
        tmp_path,
        FULL,
        lora_config=lora,
        initial_adapter_model_ckpt_path=str(adapter),
        eval_first=True,
        num_epochs=1,
    )
    train_here(job)
    assert column(tmp_path, "evalLoss")[0] == column(adapter.parent, "evalLoss")[-1]
    assert column(tmp_path, "evalLoss")[1] != column(adapter.parent, "evalLoss")[-1]


def test_an_adapter_of_another_rank_is_refused(tiny_model: Path, adapter: Path) -> None:
    problem = problem_of(
        tiny_model, lora_config={"r": 8, "lora_alpha": 16}, initial_adapter_model_ckpt_path=str(adapter)
    )
    assert problem.startswith("spec.initial_adapter_model_ckpt_path: ")
    assert problem.endswith(
        "is of shape (4, 128) in the adapter, and spec.lora_config makes it (8, 128); r must be the adapter's"
    )


def test_an_adapter_of_another_scale_is_refused(tiny_model: Path, adapter: Path) -> None:
    assert (
        problem_of(tiny_model, lora_config={"r": 4}, initial_adapter_model_ckpt_path=str(adapter))
        == "spec.initial_adapter_model_ckpt_path: the adapter was trained with lora_alpha 16, and"
        " spec.lora_config has 8; they must be equal"
    )


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [("lora_alpha", 12.5, "16"), ("alpha_pattern", {"q_proj": 0.5}, "{}")],
    ids=["alpha", "pattern"],
)
def test_an_adapter_whose_scale_is_no_whole_number_is_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path, key: str, value: JsonValue, ours: str
) -> None:
    other = copy_of(adapter, tmp_path / "adapter")
    set_keys(other / ADAPTER_CONFIG, **{key: value})
    lora: JsonValue = {"r": 4, "lora_alpha": 16}
    assert (
        problem_of(tiny_model, lora_config=lora, initial_adapter_model_ckpt_path=str(other))
        == f"spec.initial_adapter_model_ckpt_path: the adapter was trained with {key} {value}, and"
        f" spec.lora_config has {ours}; they must be equal, and spec.lora_config takes whole numbers only"
    )


def test_a_scale_that_is_written_as_a_decimal_is_the_same(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    other = copy_of(adapter, tmp_path / "adapter")
    set_keys(other / ADAPTER_CONFIG, lora_alpha=16.0)
    lora: JsonValue = {"r": 4, "lora_alpha": 16}
    spec = spec_of(tiny_model, FULL, lora_config=lora, initial_adapter_model_ckpt_path=str(other))
    assert shape(spec, load_config(spec)).trainable_parameters > 0


def test_an_adapter_of_other_modules_is_refused(tiny_model: Path, adapter: Path) -> None:
    fewer: JsonValue = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]}
    problem = problem_of(tiny_model, lora_config=fewer, initial_adapter_model_ckpt_path=str(adapter))
    assert problem.startswith(
        "spec.initial_adapter_model_ckpt_path: the adapter has base_model.model.model.layers.0."
    )
    assert problem.endswith(", which spec.lora_config does not ask for")
    more: JsonValue = {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"],
    }
    problem = problem_of(tiny_model, lora_config=more, initial_adapter_model_ckpt_path=str(adapter))
    assert (
        problem
        == "spec.initial_adapter_model_ckpt_path: the adapter has no base_model.model.lm_head.lora_A.weight,"
        " which spec.lora_config asks for"
    )


@pytest.mark.parametrize("missing", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_a_directory_without_adapter_is_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path, missing: str
) -> None:
    incomplete = copy_of(tiny_model, tmp_path / "model")
    for name in {ADAPTER_CONFIG, ADAPTER_WEIGHTS} - {missing}:
        (incomplete / name).write_bytes((adapter / name).read_bytes())
    spec = spec_of(tiny_model, FULL, lora_config={}, initial_adapter_model_ckpt_path=str(incomplete))
    with pytest.raises(FineTuneError) as raised:
        shape(spec, load_config(spec))
    assert raised.value.failure_class is FailureClass.MODEL_NOT_FOUND
    assert (
        str(raised.value) == f"spec.initial_adapter_model_ckpt_path: {incomplete} holds no {missing};"
        " give an adapter's directory"
    )


def test_an_adapter_that_says_nothing_of_its_scale_has_pefts_defaults(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    old = copy_of(adapter, tmp_path / "adapter")
    set_keys(old / ADAPTER_CONFIG, lora_alpha=None, alpha_pattern=None, use_rslora=None)
    spec = spec_of(
        tiny_model, FULL, lora_config={"r": 4, "lora_alpha": 8}, initial_adapter_model_ckpt_path=str(old)
    )
    assert shape(spec, load_config(spec)).trainable_parameters > 0


# What matches nothing

NOTHING: dict[str, tuple[Fields, str]] = {
    "ranks": (
        {"rank_pattern": {"q_prj": 64}},
        "rank_pattern: no module with an adapter is called q_prj; adapters are on down_proj, gate_proj,",
    ),
    "alphas": (
        {"alpha_pattern": {"query": 64}, "target_modules": ["q_proj", "k_proj"]},
        "alpha_pattern: no module with an adapter is called query; adapters are on k_proj, q_proj",
    ),
    "ranks of modules without adapters": (
        {"rank_pattern": {"v_proj": 64}, "target_modules": ["q_proj"]},
        "rank_pattern: no module with an adapter is called v_proj; adapters are on q_proj",
    ),
    "exclusions": (
        {"exclude_modules": ["v_prj"]},
        f"exclude_modules: no module is called v_prj; {NAMES}",
    ),
    "an expression that excludes": (
        {"exclude_modules": "v_proj"},
        f"exclude_modules: 'v_proj' matches no module; {NAMES}",
    ),
    "tokens": (
        {"trainable_token_indices": [5, 5000]},
        "trainable_token_indices: there is no token 5000; this model has tokens 0 to 1023",
    ),
    "tokens of a module": (
        {"trainable_token_indices": {"embed_tokens": [1024]}},
        "trainable_token_indices: there is no token 1024; this model has tokens 0 to 1023",
    ),
    "a module of tokens": (
        {"trainable_token_indices": {"wte": [1]}},
        f"trainable_token_indices: no module is called wte; {NAMES}",
    ),
    "layers": (
        {"layers_to_transform": [2, 7], "target_modules": ["q_proj"]},
        "layers_to_transform: this model has no layer 2, 7; its layers are 0 to 1",
    ),
    "parameters": (
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        "target_parameters: no parameter is called mlp.experts.gate_up_proj",
    ),
}


@pytest.mark.parametrize(("lora", "problem"), NOTHING.values(), ids=NOTHING)
def test_what_matches_nothing_is_an_error_before_a_device_is_used(
    tiny_model: Path, lora: Fields, problem: str
) -> None:
    assert problem_of(tiny_model, lora_config=lora).startswith(f"spec.lora_config.{problem}")


PARTLY: dict[str, tuple[Fields, str]] = {
    "ranks": (
        {"rank_pattern": {"q_prj": 64, "q_proj": 4}},
        "rank_pattern: no module with an adapter is called q_prj; ",
    ),
    "exclusions": (
        {"exclude_modules": ["v_prj", "v_proj"]},
        "exclude_modules: no module is called v_prj; it excludes nothing",
    ),
    "layers": (
        {"layers_to_transform": [1, 2], "target_modules": ["q_proj"]},
        "layers_to_transform: this model has no layer 2; its layers are 0 to 1",
    ),
    "parameters": (
        {"target_modules": [], "target_parameters": ["q_proj.weight", "q_prj.weight"]},
        "target_parameters: no parameter is called q_prj.weight",
    ),
}


@pytest.mark.parametrize(("lora", "warning"), PARTLY.values(), ids=PARTLY)
def test_what_matches_only_partly_is_a_warning(tiny_model: Path, lora: Fields, warning: str) -> None:
    assert [each for each in warnings_of(tiny_model, lora) if each.startswith(f"spec.lora_config.{warning}")]


MATCHING: dict[str, Fields] = {
    "ranks by expression": {
        "rank_pattern": {r"layers\.1\..*_proj": 4},
        "alpha_pattern": {"mlp.down_proj": 3},
    },
    "exclusions": {"exclude_modules": ["v_proj"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [0, 1023]}},
    "one layer": {"layers_to_transform": 1, "target_modules": ["q_proj"]},
    "replicated layers": {
        "layer_replication": [[0, 2], [0, 2]],
        "layers_to_transform": [3],
        "target_modules": ["q_proj"],
    },
}


@pytest.mark.parametrize("lora", MATCHING.values(), ids=MATCHING)
def test_what_matches_needs_no_remark(tiny_model: Path, lora: Fields) -> None:
    assert warnings_of(tiny_model, lora) == ()


# What PEFT remarks, and the command silences

REMARKED: dict[str, tuple[Fields, str]] = {
    "layers that are stored otherwise": (
        {"fan_in_fan_out": True},
        "fan_in_fan_out: this model's layers are not stored so; taken as false",
    ),
    "a bias that is not there": (
        {"lora_bias": True},
        "lora_bias: this model's layers have no bias, so that finetune merge cannot merge the adapter",
    ),
    "nothing that is tied": (
        {"ensure_weight_tying": True, "modules_to_save": ["lm_head"]},
        "ensure_weight_tying has no effect: this model does not tie its embeddings",
    ),
}


@pytest.mark.parametrize(("lora", "remark"), REMARKED.values(), ids=REMARKED)
def test_what_peft_remarks_is_passed_on_as_a_remark_about_our_field(
    tiny_model: Path, lora: Fields, remark: str
) -> None:
    assert warnings_of(tiny_model, lora) == (f"spec.lora_config.{remark}",)


def test_embeddings_that_are_trained_apart_are_remarked(tied_tiny_model: Path) -> None:
    [warning] = warnings_of(tied_tiny_model, {"modules_to_save": ["embed_tokens", "lm_head"]})
    assert warning == (
        "spec.lora_config.modules_to_save: this model ties embed_tokens to lm_head; in full they are trained"
        " apart, unless ensure_weight_tying is true"
    )
    kept: Fields = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    assert warnings_of(tied_tiny_model, kept) == ()


def test_weight_tying_that_ties_nothing_is_remarked(tied_tiny_model: Path) -> None:
    [warning] = warnings_of(tied_tiny_model, {"ensure_weight_tying": True})
    assert warning == (
        "spec.lora_config.ensure_weight_tying has no effect: neither modules_to_save nor target_modules names"
        " the embeddings"
    )


def test_a_remark_without_words_of_ours_is_passed_on_as_it_is() -> None:
    lora = LoraConfig()
    remarks: list[str] = []
    with peft_remarks(lora, remarks):
        warnings.warn("Something\n new.", UserWarning, stacklevel=1)
        warnings.warn("for developers", FutureWarning, stacklevel=1)
    assert remarks == ["spec.lora_config: PEFT remarks: Something new."]
