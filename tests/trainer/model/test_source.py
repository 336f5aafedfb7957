from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import boto3
import pytest
from huggingface_hub import constants
from peft import AutoPeftModelForCausalLM
from tests.trainer.hub_server import hub_with
from tests.trainer.model_directories import copy_of
from tests.trainer.training_jobs import LORA, job_of, spec_of, train_here

from finetune_api import paths
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import HubRepository
from finetune_trainer.checkpoint.save import save_weights
from finetune_trainer.model.load import load_model
from finetune_trainer.model.source import fetch_model, hub_name, source_name
from finetune_trainer.plan.prepare import prepare

FIELD = "spec.model_id"


def failure_of(source: str | HubRepository) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised:
        fetch_model(source, FIELD)
    return raised.value


# Names


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("gpt2", "gpt2"),
        ("hf://someone/model", "someone/model"),
        ("/models/llama", None),
        ("./llama", None),
        ("models/llama/3.1", None),
        ("~/llama", None),
        ("file:///models/llama", None),
        ("s3://bucket/llama", None),
        ("gs://bucket/llama", None),
        ("pvc://claim/llama", None),
    ],
)
def test_a_path_is_told_from_a_name_on_the_hub(source: str, name: str | None) -> None:
    assert hub_name(source) == name


def test_a_directory_that_is_there_is_no_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert hub_name("someone/model") is None


def test_a_checkpoint_names_its_base_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_name("./model") == str(tmp_path / "model")
    assert source_name("file:///models/llama") == "/models/llama"
    assert source_name("hf://someone/model@v1") == "someone/model"
    assert source_name(HubRepository(repo_id="someone/model")) == "someone/model"
    assert source_name("s3://bucket/llama") == "s3://bucket/llama"
    assert source_name("pvc://models/llama") == "pvc://models/llama"


# Directories


def test_a_local_model_is_used_where_it_is(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_model(str(tiny_model), FIELD) == tiny_model
    assert fetch_model(f"file://{tiny_model}", FIELD) == tiny_model
    monkeypatch.chdir(tiny_model.parent)
    assert fetch_model("tiny", FIELD) == tiny_model


@pytest.mark.parametrize("name", ["my model", "50% model", "model#2"])
def test_a_file_url_of_a_model_has_the_escapes_of_all_file_urls(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    model = copy_of(tiny_model, tmp_path / name)

    assert fetch_model(model.as_uri(), FIELD) == model
    assert source_name(model.as_uri()) == str(model)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    failed = failure_of(f"{tmp_path}/llama")
    assert failed.failure_class is FailureClass.MODEL_NOT_FOUND
    assert (
        str(failed)
        == f"spec.model_id: {tmp_path}/llama is not there; give a model's directory or organisation/name on"
        " the hub"
    )


def test_a_file_is_no_model(tiny_model: Path) -> None:
    assert (
        str(failure_of(f"{tiny_model}/config.json"))
        == f"spec.model_id: {tiny_model}/config.json is a file, not a model's directory"
    )


def test_a_directory_without_configuration_or_without_weights_is_no_model(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    assert (
        str(failure_of(str(model)))
        == f"spec.model_id: {model} holds no weights (*.safetensors); give a model's directory"
    )
    for file in model.glob("*config.json"):
        file.unlink()
    assert (
        str(failure_of(str(model)))
        == f"spec.model_id: {model} holds no configuration (*config.json); give a model's directory"
    )


def test_what_is_planned_needs_no_weights_and_what_is_trained_does(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    spec = spec_of(model, LORA, train_path=str(tiny_rows), valid_path=None)

    planned = prepare(spec, planning=True)
    assert planned.plan == prepare(spec.model_copy(update={"model_id": str(tiny_model)})).plan
    remark = "the weights are not on this machine; the plan is made from configuration and tokenizer alone"
    assert f"spec.model_id: {model}: {remark}" in planned.warnings
    with pytest.raises(FineTuneError) as raised:
        prepare(spec)
    assert str(raised.value) == (
        f"spec.model_id: {model} holds no weights (*.safetensors); give a model's directory"
    )


def test_what_is_mounted_on_a_cluster_only_is_no_model_here() -> None:
    assert "pvc://models/llama is mounted on a cluster only" in str(failure_of("pvc://models/llama"))


def test_a_model_on_a_claim_is_used_where_it_is_mounted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "MOUNTS", PurePosixPath(tmp_path))
    (tmp_path / "claims").mkdir()
    here = copy_of(tiny_model, tmp_path / "claims" / "models")
    assert fetch_model("pvc://models", FIELD) == here
    assert str(failure_of("pvc://models/llama")).startswith("spec.model_id: pvc://models/llama is not there")


# Object storage


def test_a_model_is_brought_from_object_storage_without_weights_that_are_not_needed(
    tiny_model: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = in_other_forms_as_well(copy_of(tiny_model, tmp_path / "model"))
    for file in model.iterdir():
        boto3.client("s3").upload_file(str(file), s3_bucket, f"models/tiny/{file.name}")

    described = fetch_model(f"s3://{s3_bucket}/models/tiny", FIELD, weights=False)
    assert {file.name for file in described.iterdir()} == {file.name for file in tiny_model.iterdir()} - {
        "model.safetensors"
    }
    here = fetch_model(f"s3://{s3_bucket}/models/tiny", FIELD)
    assert {file.name: file.read_bytes() for file in here.iterdir()} == {
        file.name: file.read_bytes() for file in tiny_model.iterdir()
    }


def test_what_was_downloaded_serves_all_processes_of_the_machine_until_it_changes(
    tiny_model: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for file in tiny_model.iterdir():
        boto3.client("s3").upload_file(str(file), s3_bucket, f"models/tiny/{file.name}")
    source = f"s3://{s3_bucket}/models/tiny"
    with ThreadPoolExecutor(4) as workers:
        (here, *others) = workers.map(lambda _: fetch_model(source, FIELD), range(4))
    before = {file.name: file.stat().st_ino for file in here.iterdir()}

    time.sleep(1.1)  # S3 notes the seconds of a change
    changed = (tiny_model / "config.json").read_text().replace('"silu"', '"gelu"')
    boto3.client("s3").put_object(Bucket=s3_bucket, Key="models/tiny/config.json", Body=changed.encode())
    assert fetch_model(source, FIELD) == here

    assert set(others) == {here}
    after = {file.name: file.stat().st_ino for file in here.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"config.json"}
    assert (here / "config.json").read_text() == changed


def test_an_object_store_without_the_model_is_named(s3_bucket: str) -> None:
    model = f"s3://{s3_bucket}/models/llama"
    failed = failure_of(model)
    assert failed.failure_class is FailureClass.MODEL_NOT_FOUND
    assert (
        str(failed)
        == f"spec.model_id: {model} holds no configuration (*config.json); give a model's directory"
    )
    boto3.client("s3").put_object(Bucket=s3_bucket, Key="models/llama/config.json", Body=b"{}")
    assert (
        str(failure_of(model))
        == f"spec.model_id: {model} holds no weights (*.safetensors); give a model's directory"
    )


# The hub


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub with the tiny model as `someone/model`, whose weights are there in other formats too."""
    model = in_other_forms_as_well(copy_of(tiny_model, tmp_path / "on-the-hub"))
    with hub_with(model) as address:
        for_this_hub(address, tmp_path / "cache", monkeypatch)
        yield


def in_other_forms_as_well(model: Path) -> Path:
    (model / "pytorch_model.bin").write_bytes(b"the same weights")
    (model / "consolidated.safetensors").write_bytes(b"the same weights")
    return model


def for_this_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "source",
    ["someone/model", "hf://someone/model", "hf://someone/model@v1", HubRepository(repo_id="someone/model")],
)
def test_a_model_is_brought_from_the_hub_without_weights_in_other_forms(
    tiny_model: Path, source: str | HubRepository
) -> None:
    here = fetch_model(source, FIELD)
    assert {file.name: file.read_bytes() for file in here.iterdir()} == {
        file.name: file.read_bytes() for file in tiny_model.iterdir()
    }


@pytest.mark.usefixtures("hub")
def test_the_weights_are_left_on_the_hub_when_they_are_not_needed() -> None:
    assert not list(fetch_model("someone/model", FIELD, weights=False).glob("*.safetensors"))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("source", "failure_class", "message"),
    [
        (
            "someone/else",
            FailureClass.MODEL_NOT_FOUND,
            "someone/else is neither a directory here nor a model on the hub; check the name",
        ),
        (
            "someone/gated",
            FailureClass.ACCESS_DENIED,
            "someone/gated is gated; ask for access to it on the hub, and set HF_TOKEN",
        ),
        (
            "someone/forbidden",
            FailureClass.ACCESS_DENIED,
            "the hub refuses someone/forbidden; HF_TOKEN must be one that may read it",
        ),
        (
            "someone/busy",
            FailureClass.STORAGE_ERROR,
            "someone/busy is not a directory here, and the hub cannot be reached (",
        ),
        (
            "hf://someone/model@v9",
            FailureClass.MODEL_NOT_FOUND,
            "someone/model has no revision v9 on the hub",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_named(source: str, failure_class: FailureClass, message: str) -> None:
    failed = failure_of(source)
    assert failed.failure_class is failure_class
    assert str(failed).startswith(f"spec.model_id: {message}")


@pytest.mark.parametrize(
    ("offline", "failure_class"), [(False, FailureClass.STORAGE_ERROR), (True, FailureClass.MODEL_NOT_FOUND)]
)
def test_without_a_hub_a_name_is_explained_and_asked_for_again_unless_it_must_not_be(
    offline: bool, failure_class: FailureClass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for_this_hub(f"http://127.0.0.1:{port}", tmp_path, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    failed = failure_of("someone/model")
    assert failed.failure_class is failure_class
    assert str(failed).startswith(
        "spec.model_id: someone/model is not a directory here, and the hub cannot be reached ("
    )
    assert str(failed).endswith("give a model's directory, or try again with a network")


@pytest.mark.usefixtures("hub")
def test_an_adapter_names_the_revision_of_its_base(tmp_path: Path) -> None:
    spec = spec_of(Path(), LORA, model_id="hf://someone/model@v1")
    save_weights(load_model(spec, dtype="fp32", on_gpu=False), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/model", "v1")


# No hub


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that this process tries to connect to. No connection is made."""
    tried: list[object] = []

    def refuse(_socket: socket.socket, address: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError(111, "no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tried


def test_a_model_on_the_hub_needs_a_connection(
    connections: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_this_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    failure_of("someone/model")
    assert connections == [("127.0.0.1", 9)]


def test_with_local_paths_nothing_is_asked_of_any_network(
    connections: list[object], tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    prepare(spec_of(tiny_model, LORA, train_path=str(tiny_rows), valid_path=str(tiny_rows)))
    train_here(
        job_of(tiny_model, tmp_path, {"lora_config": {"target_modules": ["q_proj", "lm_head"]}}, num_epochs=1)
    )
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "epoch-0")
    assert connections == []
