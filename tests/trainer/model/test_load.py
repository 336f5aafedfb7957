from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from tests.trainer.model_directories import copy_of, set_keys
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    VALIDATION_ROWS,
    Fields,
    column,
    forward_of,
    job_of,
    lines_of,
    spec_of,
    train_here,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.checkpoint.save import save_weights
from finetune_trainer.model.load import (
    load_config,
    load_model,
    load_tokenizer,
    pad_token_id,
    shape,
)
from finetune_trainer.training.evaluate import evaluate

IDS = torch.arange(4, 40)[None]

LLMFORGE: Fields = {
    "lora_config": {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": [
            "q_proj",
            "v_proj",
            "k_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
            "embed_tokens",
            "lm_head",
        ],
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "modules_to_save": [],
    }
}
HEAD_IN_FULL: Fields = {"lora_config": {"modules_to_save": ["lm_head"]}}
EMBEDDINGS_IN_FULL: Fields = {"lora_config": {"modules_to_save": ["embed_tokens", "lm_head"]}}

Case = tuple[str, Fields]

ADAPTERS: dict[str, Case] = {
    "all linear layers": ("untied", LORA),
    "what LLMForge's examples target": ("untied", LLMFORGE),
    "what LLMForge's examples target, in a tied model": ("tied", LLMFORGE),
    "a regular expression": (
        "untied",
        {"lora_config": {"target_modules": r".*layers\.1\.self_attn\.[qv]_proj"}},
    ),
    "a head trained in full": ("untied", HEAD_IN_FULL),
    "a head trained in full, of a tied model": ("tied", HEAD_IN_FULL),
    "both embeddings trained in full, of a tied model": ("tied", EMBEDDINGS_IN_FULL),
    "DoRA": ("untied", {"lora_config": {"use_dora": True}}),
    "ranks of their own": (
        "untied",
        {"lora_config": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}},
    ),
    "a few tokens": ("untied", {"lora_config": {"trainable_token_indices": [1, 2]}}),
    "parameters": (
        "untied",
        {"lora_config": {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]}},
    ),
}
FULL_MODELS: dict[str, Case] = {"full": ("untied", FULL), "full, tied": ("tied", FULL)}


@dataclass(frozen=True)
class Trained:
    """A model with changed weights, the model it was made from, and the directory it was saved in."""

    spec: FineTuneJobSpec
    base: Path
    model: PreTrainedModel | PeftModel
    saved: Path


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tied_tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    embeddings, way = request.param
    base = {"untied": tiny_model, "tied": tied_tiny_model}[embeddings]
    spec = spec_of(base, way)
    model = with_something_learnt(load_model(spec, dtype="fp32", on_gpu=False))
    saved = tmp_path_factory.mktemp("saved")
    save_weights(model, saved)
    return Trained(spec, base, model, saved)


def with_something_learnt(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Changes the trained weights at random, since new adapters add nothing."""
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    return model.eval()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


def indirectly(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trained", cases.values(), ids=cases, indirect=True)


@indirectly(ADAPTERS)
def test_peft_alone_loads_the_adapter_that_was_trained(trained: Trained) -> None:
    base = AutoModelForCausalLM.from_pretrained(trained.base)
    untrained = logits_of(base)
    assert torch.equal(
        logits_of(PeftModel.from_pretrained(base, str(trained.saved))), logits_of(trained.model)
    )
    assert not torch.equal(logits_of(trained.model), untrained)


@indirectly(FULL_MODELS)
def test_transformers_alone_loads_the_model_that_was_trained(trained: Trained) -> None:
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(trained.saved)), logits_of(trained.model)
    )


@indirectly(ADAPTERS | FULL_MODELS)
def test_a_run_resumes_with_the_model_that_was_saved(trained: Trained) -> None:
    resumed = load_model(trained.spec, dtype="fp32", on_gpu=False, resumed=trained.saved)
    assert torch.equal(logits_of(resumed), logits_of(trained.model))


@indirectly(ADAPTERS | FULL_MODELS)
def test_the_shape_is_known_without_the_weights(trained: Trained) -> None:
    known = shape(trained.spec, load_config(trained.spec))
    parameters = list(trained.model.parameters())
    assert known.total_parameters == sum(parameter.numel() for parameter in parameters)
    assert known.trainable_parameters == sum(
        parameter.numel() for parameter in parameters if parameter.requires_grad
    )
    assert (known.layers, known.hidden_size, known.vocabulary, known.context_length) == (2, 64, 1024, 2048)


@pytest.fixture(scope="module")
def lora_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model and run directory were given as relative paths."""
    here = tmp_path_factory.mktemp("here")
    shutil.copytree(tiny_model, here / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        generation: JsonValue = {"stopping_sequences": ["\n\n"]}
        train_here(
            job_of(
                Path("model"),
                here / "run",
                LORA,
                generation_config=generation,
                num_epochs=1,
                learning_rate=1e-2,
            )
        )
    return here / "run"


def test_an_adapter_checkpoint_loads_from_anywhere_as_the_model_that_was_validated(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied = copy_of(lora_run / "epoch-0", tmp_path / "copied")
    model = AutoPeftModelForCausalLM.from_pretrained(copied)
    assert round(evaluate(forward_of(model), VALIDATION_ROWS, 16).loss, 6) == column(lora_run, "evalLoss")[-1]


@pytest.mark.parametrize("way", ["lora", "full"])
def test_a_checkpoint_generates_with_its_own_tokenizer_and_chat_template(
    tiny_model: Path, lora_run: Path, tmp_path: Path, way: str
) -> None:
    if way == "lora":
        checkpoint, model = (
            lora_run / "epoch-0",
            AutoPeftModelForCausalLM.from_pretrained(lora_run / "epoch-0"),
        )
    else:
        train_here(job_of(tiny_model, tmp_path, FULL, num_epochs=1))
        checkpoint, model = tmp_path / "epoch-0", AutoModelForCausalLM.from_pretrained(tmp_path / "epoch-0")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint)
    question = [{"role": "user", "content": "What is a list?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt == AutoTokenizer.from_pretrained(tiny_model).apply_chat_template(
        question, add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert answer.shape[1] > ids["input_ids"].shape[1]


def test_a_checkpoint_says_where_to_stop(lora_run: Path) -> None:
    generation = GenerationConfig.from_pretrained(lora_run / "epoch-0")
    tokenizer = AutoTokenizer.from_pretrained(lora_run / "epoch-0")
    assert tokenizer.convert_ids_to_tokens(generation.eos_token_id) == ["<|im_end|>", "ĊĊ"]


def test_an_adapter_is_small_and_names_its_base_by_an_absolute_path(lora_run: Path) -> None:
    config = json.loads((lora_run / "epoch-0" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(lora_run.parent / "model")
    assert config["target_modules"] == sorted(config["target_modules"])
    weights = load_file(lora_run / "epoch-0" / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)


def test_targeted_embeddings_are_not_copied_into_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, {"lora_config": {"target_modules": ["embed_tokens", "lm_head"]}})
    save_weights(load_model(spec, dtype="fp32", on_gpu=False), tmp_path)
    assert all("lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_new_adapters_depend_on_the_seed_alone(tiny_model: Path) -> None:
    def new(seed: int) -> dict[str, torch.Tensor]:
        return {
            name: parameter.detach()
            for name, parameter in load_model(
                spec_of(tiny_model, LORA, seed=seed), dtype="fp32", on_gpu=False
            ).named_parameters()
            if "lora_A" in name
        }

    torch.manual_seed(5)
    first = new(1)
    torch.manual_seed(6)
    again, other = new(1), new(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("way", "frozen"), [(LORA, torch.bfloat16), (FULL, None)], ids=["lora", "full"])
def test_in_bf16_what_is_frozen_is_held_in_bf16_and_what_is_trained_in_fp32(
    tiny_model: Path, way: Fields, frozen: torch.dtype | None
) -> None:
    model = load_model(spec_of(tiny_model, way), dtype="bf16", on_gpu=False)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == (
        {frozen} if frozen else set()
    )


def test_trained_weights_begin_where_pytorch_would_have_them_whatever_file_they_are_from(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Else a run that is resumed from a file of its own would not be the same to the bit."""
    shifted = tmp_path / "shifted"
    shutil.copytree(tiny_model, shifted)
    weights = load_file(shifted / "model.safetensors")
    for letters in range(0, 64, 8):  # the header's length decides
        save_file(weights, shifted / "model.safetensors", {"format": "pt", "more": "x" * letters})
        model = load_model(spec_of(shifted, FULL), dtype="fp32", on_gpu=False)
        assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}


def test_the_base_may_come_from_another_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path / "full", FULL, num_epochs=1, learning_rate=1e-2))
    base = tmp_path / "full" / "epoch-0"
    job = job_of(
        tiny_model,
        tmp_path / "lora",
        LORA,
        initial_base_model_ckpt_path=str(base),
        eval_first=True,
        num_epochs=1,
    )
    train_here(job)
    assert column(tmp_path / "lora", "evalLoss")[0] == pytest.approx(
        column(tmp_path / "full", "evalLoss")[-1], abs=1e-6
    )
    config = json.loads((tmp_path / "lora" / "epoch-0" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_a_tokenizer_without_pad_token_fills_with_its_end_of_text_and_learns_the_same(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(spec_of(model, LORA))
    assert tokenizer.pad_token_id is None
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id
    train_here(job_of(model, tmp_path / "without", LORA, num_epochs=2))
    train_here(job_of(tiny_model, tmp_path / "with", LORA, num_epochs=2))
    assert lines_of(tmp_path / "without") == lines_of(tmp_path / "with")


def load(spec: FineTuneJobSpec) -> None:
    load_tokenizer(spec)
    shape(spec, load_config(spec))
    load_model(spec, dtype="fp32", on_gpu=False)


def problem_of(model: Path, way: Fields = FULL, **fields: JsonValue) -> str:
    """The error message for this model, when it is described or loaded."""
    with pytest.raises(FineTuneError) as raised:
        load(spec_of(model, way, **fields))
    assert raised.value.failure_class is FailureClass.MODEL_NOT_FOUND
    return str(raised.value)


def test_a_tokenizer_with_neither_pad_nor_end_of_text_token_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "tokenizer_config.json", pad_token=None, eos_token=None)
    assert (
        problem_of(model)
        == f"spec.model_id: {model}: its tokenizer has neither a pad token nor an end-of-text token; "
        "set pad_token in its tokenizer_config.json"
    )


def test_a_model_without_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    assert problem_of(model).startswith(f"spec.model_id: {model} cannot be read: ")


def test_an_architecture_that_transformers_does_not_know_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "config.json", model_type="alien")
    assert "has model type `alien` but Transformers does not recognize this architecture" in problem_of(model)


def test_an_encoder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "config.json").write_text('{"model_type": "t5"}')
    assert problem_of(model) == "spec.model_id: a t5 is not a causal language model that transformers knows"


def test_damaged_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert problem_of(model).startswith(f"spec.model_id: {weights} is damaged (")


def test_weights_that_are_missing_are_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert (
        problem_of(model)
        == f"spec.model_id: {model} has no weights for model.layers.1.mlp.up_proj.weight in the sizes that"
        " its config.json says; give a complete model"
    )


def test_weights_of_another_size_than_the_configuration_says_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / "config.json", intermediate_size=96)
    problem = problem_of(tiny_model, initial_base_model_ckpt_path=str(model))
    assert problem.startswith(
        f"spec.initial_base_model_ckpt_path: {model} has no weights for model.layers.0.mlp.down_proj.weight, "
    )


def test_code_in_a_models_directory_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    mark = tmp_path / "was-run"
    (model / "planted.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    own: JsonValue = {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}
    set_keys(model / "config.json", auto_map=own)
    set_keys(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["planted.Tokenizer", None]})
    train_here(job_of(model, tmp_path / "run", LORA, num_epochs=1))
    set_keys(model / "config.json", model_type="alien")
    assert problem_of(model)
    assert not mark.exists()
