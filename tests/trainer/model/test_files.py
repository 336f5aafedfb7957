"""Every file of a model, a tokenizer, an adapter and a checkpoint is damaged in every way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.trainer.model_directories import copy_of, set_keys
from tests.trainer.training_jobs import FULL, LORA, Fields, job_of, spec_of, train_here

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.model.load import load_config, load_model, load_tokenizer, shape
from finetune_trainer.storage.open import open_storage
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.tasks.task import task_of

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n".encode()

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "another-encoding": lambda content: content.decode("latin-1").encode("utf-16"),
    "a-byte-too-much": lambda content: content[:-2] + b"\xff" + content[-2:],
    "a-list": lambda _: b"[1, 2]",
    "null": lambda _: b"null",
    "pointer": lambda _: POINTER,
    "binary": lambda _: bytes(range(256)),
}


def damaged(original: Path, directory: Path, name: str, damage: Callable[[bytes], bytes]) -> Path:
    """A copy in which one file is damaged."""
    copy = copy_of(original, directory)
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    return copy


def read(model: Path, way: Fields = LORA, **fields: JsonValue) -> None:
    """Reads all that training reads of a model."""
    spec = spec_of(model, way, **fields)
    task_of(spec).chat(load_tokenizer(spec))
    shape(spec, load_config(spec))
    load_model(spec, dtype="fp32", on_gpu=False)


def problem_of(model: Path, way: Fields = LORA, **fields: JsonValue) -> str:
    with pytest.raises(FineTuneError) as raised:
        read(model, way, **fields)
    assert len(raised.value.problems) == 1
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.failure_class in (FailureClass.MODEL_NOT_FOUND, FailureClass.INVALID_SPEC)
    return str(raised.value)


MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
]


def test_these_are_all_files_of_the_tiny_model(tiny_model: Path) -> None:
    assert sorted(file.name for file in tiny_model.iterdir()) == sorted(MODEL_FILES)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_damaged_file_of_a_model_is_one_line_that_names_it(
    tiny_model: Path, tmp_path: Path, name: str, damage: str
) -> None:
    model = damaged(tiny_model, tmp_path / "model", name, DAMAGES[damage])

    problem = problem_of(model)

    if name == "chat_template.jinja" and damage in ("cut", "a-list", "null"):
        # Text is a template, whatever it says.
        assert problem == (
            f"spec.generation_config.prompt_format: is needed, since the chat template of {model} cannot be"
            " read or leaves out what is said"
        )
    else:
        assert problem.startswith(f"spec.model_id: {model / name} ")
    if damage == "pointer":
        assert "git lfs pull" in problem


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_file_of_an_adapter_is_one_line_that_names_it(
    tiny_model: Path, trained: Path, tmp_path: Path, name: str, damage: str
) -> None:
    adapter = damaged(trained / "epoch-0", tmp_path / "adapter", name, DAMAGES[damage])

    problem = problem_of(tiny_model, initial_adapter_model_ckpt_path=str(adapter))

    assert problem.startswith(f"spec.initial_adapter_model_ckpt_path: {adapter / name} ")


WRONG_VALUES: dict[str, tuple[str, dict[str, JsonValue]]] = {
    "a-size-in-words": ("config.json", {"hidden_size": "wide"}),
    "no-layers": ("config.json", {"num_hidden_layers": "two"}),
    "no-heads": ("config.json", {"num_attention_heads": 0}),
    "a-list-of-sizes": ("config.json", {"vocab_size": [1024]}),
    "a-template-that-is-a-number": ("tokenizer_config.json", {"chat_template": 5}),
    "tokens-that-are-numbers": ("tokenizer_config.json", {"eos_token": 5}),
    "an-unknown-class": ("tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer"}),
}


@pytest.mark.parametrize(("name", "values"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_value_of_another_type_is_one_line_or_does_no_harm(
    tiny_model: Path, tmp_path: Path, name: str, values: dict[str, JsonValue]
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    set_keys(model / name, **values)

    said = f"spec.model_id: {model}"
    try:
        read(model)
    except FineTuneError as error:
        said = str(error)

    assert said.startswith(f"spec.model_id: {model}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["Unigram3", "Mamba"])
def test_a_tokenizer_of_a_kind_that_is_not_installed_is_named(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["type"] = kind
    file.write_text(json.dumps(content))

    assert problem_of(model).startswith(
        f"spec.model_id: {file} has a model of type {kind}, which tokenizers 0."
    )


def test_all_damaged_files_are_named_at_once(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "config.json").write_bytes(b"")
    (model / "model.safetensors").write_bytes(POINTER)

    with pytest.raises(FineTuneError) as raised:
        read(model)

    assert [problem.split(" is ")[0] for problem in raised.value.problems] == [
        f"spec.model_id: {model / 'config.json'}",
        f"spec.model_id: {model / 'model.safetensors'}",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_is_seen_before_weights_are_read(tiny_model: Path, tmp_path: Path, name: str) -> None:
    model = damaged(tiny_model, tmp_path / "model", name, DAMAGES["pointer"])

    with pytest.raises(FineTuneError) as raised:
        load_config(spec_of(model, LORA))

    assert str(raised.value) == (
        f"spec.model_id: {model / name} is a pointer of git-lfs, not the file itself; fetch it with"
        " `git lfs pull`"
    )


def test_one_in_object_storage_is_seen_before_weights_are_downloaded(
    tiny_model: Path, tmp_path: Path, s3_bucket: str
) -> None:
    storage = open_storage(f"s3://{s3_bucket}/models")
    with storage.staging("tiny") as staging:
        shutil.copytree(tiny_model, staging, dirs_exist_ok=True)
        (staging / "model.safetensors").write_bytes(POINTER)
        storage.publish(staging, "tiny", last="config.json")
    model = f"s3://{s3_bucket}/models/tiny"

    with pytest.raises(FineTuneError) as raised:
        load_config(spec_of(tmp_path, LORA, model_id=model))

    assert str(raised.value) == (
        f"spec.model_id: {model}/model.safetensors is a pointer of git-lfs, not the file itself; fetch it"
        " with `git lfs pull`"
    )


def test_files_that_are_nobodys_business_may_hold_anything(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "notes.json").write_text("no JSON")
    (model / "modules.json").write_text("[]")

    read(model)


# Checkpoints

IN_BF16: Fields = {**FULL, "export_dtype": "bf16"}
"""Its checkpoints have the weights in fp32 as well, for resuming."""


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter of one epoch."""
    return run_of(tiny_model, tmp_path_factory.mktemp("lora") / "run", LORA)


@pytest.fixture(scope="module")
def fully_trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a full model of one epoch."""
    return run_of(tiny_model, tmp_path_factory.mktemp("full") / "run", IN_BF16)


def run_of(model: Path, run: Path, way: Fields) -> Path:
    train_here(job_of(model, run, way, num_epochs=1))
    (run / "result.json").unlink()
    return run


LORA_STATE = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "state/position.json",
    "state/optimizer.pt",
    "state/random.pt",
]
FULL_STATE = ["config.json", "model.safetensors", "state/optimizer.pt", "state/weights.pt"]
READ_AGAIN = [(LORA, name) for name in LORA_STATE if name != "adapter_config.json"] + [
    (IN_BF16, name) for name in FULL_STATE
]


@pytest.mark.parametrize("damage", ["cut", "empty", "a-list", "pointer", "binary"])
@pytest.mark.parametrize(
    ("way", "name"),
    READ_AGAIN,
    ids=[f"{'lora' if way == LORA else 'full'}-{name}" for way, name in READ_AGAIN],
)
def test_a_damaged_file_of_a_checkpoint_is_one_line(
    tiny_model: Path,
    trained: Path,
    fully_trained: Path,
    tmp_path: Path,
    way: Fields,
    name: str,
    damage: str,
) -> None:
    run = Path(shutil.copytree(trained if way == LORA else fully_trained, tmp_path / "run"))
    file = run / "epoch-0" / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    complete = json.loads((run / "epoch-0" / "complete.json").read_text())
    complete["files"][name] = file.stat().st_size
    (run / "epoch-0" / "complete.json").write_text(json.dumps(complete))
    job = job_of(tiny_model, run, way, num_epochs=2)
    assert job.start.resume_from == "epoch-0"

    with pytest.raises(FineTuneError) as raised:
        train_here(job)

    assert len(str(raised.value).splitlines()) == 1
    assert str(run / "epoch-0") in str(raised.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_one_line_that_names_it(trained: Path, tmp_path: Path, damage: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "result.json").write_bytes(DAMAGES[damage](b'{"version": 1, "finished": true}'))

    with pytest.raises(FineTuneError) as raised:
        RunDirectory.open(str(run)).result()

    assert str(raised.value) == (
        f"{run}/result.json: is not what a finished run writes; delete it, and the run goes on from its"
        " checkpoints"
    )


@pytest.mark.parametrize("line", ["{}", "[]", "null", '{"step": "x"}', "5", '{"step": null}'])
def test_lines_of_metrics_that_are_none_are_removed(trained: Path, tmp_path: Path, line: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    metrics = run / "metrics.jsonl"
    good = metrics.read_text()
    metrics.write_text(f"{line}\n{good}")

    RunDirectory.open(str(run)).truncate_metrics(1000)

    assert metrics.read_text() == good
