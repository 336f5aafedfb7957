from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from tests.trainer.training_jobs import Fields, job_of, train_here
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.export.merge import merge
from finetune_trainer.storage.open import open_storage

EMBEDDINGS: list[JsonValue] = ["q_proj", "embed_tokens", "lm_head"]

UNTIED: dict[str, Fields] = {
    "all linear layers": {},
    "embeddings": {"target_modules": EMBEDDINGS},
    "embeddings in full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "some tokens": {"trainable_token_indices": [5, 6, 7]},
    "replicated layers": {"layer_replication": [[0, 2], [0, 2]]},
    "parameters": {"target_modules": ["q_proj"], "target_parameters": ["mlp.down_proj.weight"]},
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True, "r": 4},
    "ranks by module": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}

TIED: dict[str, Fields] = {
    "all linear layers": {},
    "embeddings": {"target_modules": EMBEDDINGS},
    "embeddings kept tied": {"target_modules": EMBEDDINGS, "ensure_weight_tying": True},
    "input embedding alone": {"target_modules": ["embed_tokens"]},
    "head alone": {"target_modules": ["lm_head"]},
    "embeddings in full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings in full, kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "head in full": {"modules_to_save": ["lm_head"]},
    "some tokens": {"trainable_token_indices": [5, 6, 7]},
    "replicated layers": {"layer_replication": [[0, 2], [0, 2]], "target_modules": EMBEDDINGS},
    "PiSSA": {"init_lora_weights": "pissa", "target_modules": EMBEDDINGS},
}


def trained_adapter(
    model: Path, directory: Path, lora: Fields, *, generation_config: JsonValue = None
) -> Path:
    """A checkpoint after an epoch that changes the model a lot."""
    way: Fields = {"lora_config": lora, "generation_config": generation_config}
    train_here(job_of(model, directory, way, validation=None, num_epochs=1, learning_rate=1e-2))
    return directory / "epoch-0"


@pytest.fixture(scope="module")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("merge") / "run"
    trained_adapter(tiny_model, directory, {})
    return directory


@pytest.fixture
def adapter(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint of the tiny model, which a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run") / "epoch-0"


def load(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    return model


def load_adapter(model: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(load(model), str(adapter))


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    tokens = torch.arange(4, 1024, 5).reshape(6, 34)
    answer: torch.Tensor = model.eval()(input_ids=tokens).logits
    return answer.float()


def chat_tokens(directory: Path) -> list[int]:
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    return list(AutoTokenizer.from_pretrained(directory).apply_chat_template(chat, return_dict=False))


def largest_gap(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def failure_of(checkpoint: Path | str, out: Path) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised:
        merge(str(checkpoint), out)
    return raised.value


def set_in(file: Path, **values: JsonValue) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# What is written


@pytest.mark.parametrize("lora", UNTIED.values(), ids=UNTIED)
def test_the_merged_model_answers_as_its_adapter_does(lora: Fields, tiny_model: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny_model, tmp_path / "run", lora)

    merge(str(adapter), tmp_path / "merged")

    expected = logits(load_adapter(tiny_model, adapter))
    assert largest_gap(logits(load(tiny_model)), expected) > 1e-2
    assert largest_gap(logits(load(tmp_path / "merged")), expected) <= 1e-5


@pytest.mark.parametrize("lora", TIED.values(), ids=TIED)
def test_so_it_does_where_one_matrix_is_embedding_and_head(
    lora: Fields, tied_tiny_model: Path, tmp_path: Path
) -> None:
    adapter = trained_adapter(tied_tiny_model, tmp_path / "run", lora)

    merge(str(adapter), tmp_path / "merged")

    expected = logits(load_adapter(tied_tiny_model, adapter))
    assert largest_gap(logits(load(tied_tiny_model)), expected) > 1e-2
    assert largest_gap(logits(load(tmp_path / "merged")), expected) <= 1e-5


def test_a_plain_model_with_its_tokenizer_and_how_to_generate_is_written(
    tiny_model: Path, tmp_path: Path
) -> None:
    stop: list[JsonValue] = ["\n\n"]
    adapter = trained_adapter(
        tiny_model, tmp_path / "run", {}, generation_config={"stopping_sequences": stop}
    )

    merge(str(adapter), tmp_path / "merged")

    assert {file.name for file in (tmp_path / "merged").iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert chat_tokens(tmp_path / "merged") == chat_tokens(tiny_model)
    ends = GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").convert_ids_to_tokens(ends) == [
        "<|im_end|>",
        "ĊĊ",
    ]


def test_embeddings_stay_tied_when_they_were_not_trained(tied_tiny_model: Path, tmp_path: Path) -> None:
    merge(str(trained_adapter(tied_tiny_model, tmp_path / "run", {})), tmp_path / "merged")

    assert load(tmp_path / "merged").config.tie_word_embeddings is True
    assert "lm_head.weight" not in load_file(tmp_path / "merged/model.safetensors")


def test_embeddings_that_were_trained_apart_are_untied(tied_tiny_model: Path, tmp_path: Path) -> None:
    merge(
        str(trained_adapter(tied_tiny_model, tmp_path / "run", {"target_modules": EMBEDDINGS})),
        tmp_path / "merged",
    )

    assert load(tmp_path / "merged").config.tie_word_embeddings is False
    assert "lm_head.weight" in load_file(tmp_path / "merged/model.safetensors")


@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_the_precision_is_the_bases_own(lora: Fields, tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    adapter = trained_adapter(base, tmp_path / "run", lora)

    merge(str(adapter), tmp_path / "merged")

    assert {weight.dtype for weight in load_file(tmp_path / "merged/model.safetensors").values()} == {
        torch.bfloat16
    }
    assert load(tmp_path / "merged").dtype == torch.bfloat16


def test_an_adapter_in_object_storage_is_merged(
    adapter: Path, s3_bucket: str, tiny_model: Path, tmp_path: Path
) -> None:
    runs = open_storage(f"s3://{s3_bucket}/run")
    with runs.staging("epoch-0") as staging:
        shutil.copytree(adapter, staging, dirs_exist_ok=True)
        runs.publish(staging, "epoch-0", last="complete.json")

    merge(f"s3://{s3_bucket}/run/epoch-0", tmp_path / "merged")

    assert largest_gap(logits(load(tmp_path / "merged")), logits(load_adapter(tiny_model, adapter))) <= 1e-5


def test_an_adapter_without_a_tokenizer_gets_the_bases(adapter: Path, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (adapter / file).unlink()

    merge(str(adapter), tmp_path / "merged")

    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_an_empty_directory_may_be_there_already(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()

    merge(str(adapter), tmp_path / "merged")

    assert (tmp_path / "merged/model.safetensors").is_file()


# What is refused, with nothing written


def test_a_directory_that_is_not_empty_is_left_as_it_is(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/mine").touch()

    error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert str(error) == f"{tmp_path}/merged: is there already and not empty; give a directory that is not"
    assert [file.name for file in (tmp_path / "merged").iterdir()] == ["mine"]


def test_a_file_is_left_as_it_is(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").write_text("mine")

    assert failure_of(adapter, tmp_path / "merged").failure_class == FailureClass.INVALID_SPEC
    assert (tmp_path / "merged").read_text() == "mine"


def test_a_full_model_needs_no_merging(tiny_model: Path, tmp_path: Path) -> None:
    error = failure_of(tiny_model, tmp_path / "merged")

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert str(error) == f"{tiny_model}: is a full model, not an adapter; it needs no merging"


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_without_an_adapter_is_refused(there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "run").mkdir()

    error = failure_of(tmp_path / "run", tmp_path / "merged")

    assert error.failure_class == FailureClass.MODEL_NOT_FOUND
    assert str(error).startswith(
        f"{tmp_path}/run: holds no adapter_config.json; give the directory of a LoRA checkpoint"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "Invalid JSON"),
        ('{"peft_type": "LORA"}', "base_model_name_or_path: Field required"),
        (
            '{"peft_type": "IA3", "base_model_name_or_path": "org/base"}',
            "peft_type is IA3; only LORA can be merged",
        ),
    ],
)
def test_an_adapter_config_that_cannot_be_used_is_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)

    error = failure_of(tmp_path, tmp_path / "merged")

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert str(error).startswith(f"{tmp_path}/adapter_config.json: {what}")


def test_a_base_that_is_not_there_is_named(adapter: Path, tmp_path: Path) -> None:
    set_in(adapter / "adapter_config.json", base_model_name_or_path=f"{tmp_path}/gone")

    error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.MODEL_NOT_FOUND
    assert str(error).startswith(
        f"{adapter}/adapter_config.json: base_model_name_or_path: {tmp_path}/gone is not there"
    )


def test_a_base_that_cannot_be_read_is_named(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"half a file")
    set_in(adapter / "adapter_config.json", base_model_name_or_path=str(base))

    error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.MODEL_NOT_FOUND
    assert str(error).startswith(
        f"{adapter}/adapter_config.json: base_model_name_or_path: {base}/model.safetensors is damaged ("
    )
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_damaged_file_of_an_adapter_is_one_line_that_names_it(
    adapter: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    (adapter / name).write_bytes(content)

    error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.MODEL_NOT_FOUND
    assert str(error).startswith(f"{adapter}: ")
    assert f"/{name} " in str(error)
    assert len(str(error).splitlines()) == 1


def test_an_adapter_that_lacks_weights_is_refused(adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "layers.1." not in name},
        adapter / "adapter_model.safetensors",
    )

    error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert str(error).startswith(
        f"{adapter}: the adapter does not fit its base model: Found missing adapter keys"
    )


def test_an_adapter_of_another_size_is_refused(adapter: Path, tmp_path: Path) -> None:
    set_in(adapter / "adapter_config.json", r=3)

    assert str(failure_of(adapter, tmp_path / "merged")).startswith(
        f"{adapter}: the adapter does not fit its base model: "
    )


def test_what_peft_cannot_merge_is_refused_in_its_words(tiny_model: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny_model, tmp_path / "run", {"lora_bias": True})

    error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert "peft cannot merge this adapter: Impossible to merge LoRA with `lora_bias=True`" in str(error)


def test_a_merge_that_answers_differently_is_not_written(tied_tiny_model: Path, tmp_path: Path) -> None:
    # peft leaves the tied head's own adapter out of the merge when tokens of the embedding are
    # trained as well.
    lora: Fields = {"target_modules": ["lm_head"], "trainable_token_indices": {"embed_tokens": [5, 6]}}
    adapter = trained_adapter(tied_tiny_model, tmp_path / "run", lora)

    error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.UNKNOWN
    assert f"{adapter}: the merged model's logits are " in str(error)
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}


def test_a_full_disk_leaves_nothing(
    adapter: Path, full_disk: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    with full_disk():
        error = failure_of(adapter, tmp_path / "merged")

    assert error.failure_class == FailureClass.STORAGE_ERROR
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}
