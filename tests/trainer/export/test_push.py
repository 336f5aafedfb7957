from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from tests.trainer.writable_hub import OWNER, READER, TEAM, WRITER, Hub, Repository

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.export import push as push_module
from finetune_trainer.export.merge import merge
from finetune_trainer.export.push import Pushed, check_hub, push
from finetune_trainer.storage.run_directory import RunDirectory

NAME = "someone/tuned"
ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
MODEL = (ADAPTER - {"adapter_config.json", "adapter_model.safetensors"}) | {
    "config.json",
    "model.safetensors",
}


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def best(run: Path) -> str:
    [name] = [each.name for each in RunDirectory.open(str(run)).checkpoints() if each.best]
    return name


def failure_of(
    run: Path | str, name: str = NAME, *, checkpoint: str | None = None, merged: bool = False
) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised:
        push(str(run), name, checkpoint=checkpoint, merged=merged)
    assert WRITER not in str(raised.value)
    return raised.value


def writes(hub: Hub) -> list[str]:
    return [asked for asked in hub.asked if asked.startswith(("POST", "PUT"))]


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# What is uploaded


def test_of_the_best_checkpoint_what_inference_needs_is_uploaded_in_one_commit(hub: Hub, run: Path) -> None:
    pushed = push(str(run), NAME)

    files = hub.repositories[NAME].files()
    assert files.keys() == ADAPTER
    assert all(
        content == (run / best(run) / name).read_bytes()
        for name, content in files.items()
        if name != "README.md"
    )
    assert len(hub.repositories[NAME].messages()) == 1
    assert pushed == Pushed(
        f"{hub.address}/{NAME}",
        NAME,
        None,
        f"{run}/{best(run)}",
        len(ADAPTER),
        pushed.remarks,
        "commit-main-1",
    )


def test_what_is_there_already_makes_no_other_commit(hub: Hub, run: Path) -> None:
    first, second = push(str(run), NAME), push(str(run), NAME)

    assert second == first
    assert len(hub.repositories[NAME].messages()) == 1


def test_another_checkpoint_is_uploaded_by_its_name_or_its_directory(hub: Hub, run: Path) -> None:
    [other] = {"epoch-0", "epoch-1"} - {best(run)}

    push(str(run), NAME, checkpoint=other)
    push(str(run / other), "someone/same")

    weights = (run / other / "adapter_model.safetensors").read_bytes()
    assert [
        hub.repositories[name].files()["adapter_model.safetensors"] for name in (NAME, "someone/same")
    ] == [weights] * 2


def test_a_merged_model_is_uploaded_whole(hub: Hub, run: Path, tmp_path: Path) -> None:
    merge(str(run / best(run)), tmp_path / "merged")

    push(str(run), NAME, merged=True)

    files = hub.repositories[NAME].files()
    assert files.keys() == MODEL
    assert files["model.safetensors"] == (tmp_path / "merged/model.safetensors").read_bytes()
    assert "A LoRA adapter merged into " in files["README.md"].decode()


def test_weights_that_an_earlier_push_has_left_go_and_all_else_stays(hub: Hub, run: Path) -> None:
    push(str(run), NAME)
    hub.repositories[NAME].files()["notes.md"] = b"mine"

    push(str(run), NAME, merged=True)
    assert hub.repositories[NAME].files().keys() == MODEL | {"notes.md"}

    push(str(run), NAME)
    assert hub.repositories[NAME].files().keys() == ADAPTER | {"notes.md"}


PEFTS_CARD = """---
base_model: {base}
library_name: peft
tags:
- base_model:adapter:{base}
- lora
- transformers
---
# Model Card for Model ID
"""
"""As PEFT writes it, and as checkpoints of earlier versions have it."""


def test_a_card_names_no_directory_as_its_base_which_hubs_refuse(
    hub: Hub, run: Path, tiny_model: Path
) -> None:
    card = run / best(run) / "README.md"
    card.write_text(PEFTS_CARD.format(base=tiny_model))

    push(str(run), NAME)

    pushed = hub.repositories[NAME].files()["README.md"].decode()
    assert str(tiny_model) not in pushed
    assert ModelCard(pushed).data.get("tags") == ["lora", "transformers"]


def test_a_card_names_the_base_that_the_adapter_does(hub: Hub, run: Path) -> None:
    checkpoint = run / best(run)
    change(checkpoint / "adapter_config.json", base_model_name_or_path="org/base")
    (checkpoint / "README.md").write_text("---\nbase_model: /models/base\nlicense: mit\n---\n# My words\n")

    pushed = push(str(checkpoint), NAME)

    card = hub.repositories[NAME].files()["README.md"].decode()
    assert "base_model: org/base\n" in card
    assert "license: mit\n" in card
    assert "# My words" in card
    assert pushed.remarks == []


def test_a_card_that_hubs_take_stays_as_it_is(hub: Hub, run: Path) -> None:
    checkpoint = run / best(run)
    card = "---\nlicense:   mit # mine\nbase_model: org/base\n---\n# My words\n"
    (checkpoint / "README.md").write_text(card)

    push(str(checkpoint), NAME)

    assert hub.repositories[NAME].files()["README.md"].decode() == card


@pytest.mark.usefixtures("hub")
def test_an_adapter_whose_base_nobody_else_has_is_remarked(run: Path, tiny_model: Path) -> None:
    [remark] = push(str(run), NAME).remarks

    assert remark.startswith(f"the adapter's base model is {tiny_model}, which is not on a hub")
    assert "--merge" in remark


# Where to


@pytest.mark.parametrize("public", [False, True])
def test_a_new_repository_is_private_unless_it_is_to_be_public(hub: Hub, run: Path, public: bool) -> None:
    push(str(run), NAME, public=public)

    assert hub.repositories[NAME].private is not public


def test_a_branch_is_made_and_main_stays_as_it_was(hub: Hub, run: Path) -> None:
    pushed = push(str(run), NAME, revision="v2", message="the second")
    push(str(run / "epoch-0"), NAME, revision="v2", message="the third")

    repository = hub.repositories[NAME]
    assert repository.messages("v2")[0] == "the second"
    assert repository.files() == {}
    assert pushed.address == f"{hub.address}/{NAME}/tree/v2"


def test_what_is_public_already_is_not_written_to_unless_that_is_said(hub: Hub, run: Path) -> None:
    hub.repositories[NAME] = Repository(private=False)

    failed = failure_of(run)

    assert failed.failure_class is FailureClass.INVALID_SPEC
    assert (
        str(failed) == f"{NAME}: is there already, for all to see; say --public if this model may be seen too"
    )
    assert writes(hub) == []
    push(str(run), NAME, public=True)
    assert hub.repositories[NAME].files().keys() == ADAPTER


# What goes wrong


def test_without_a_token_and_with_a_wrong_name_both_are_said_and_no_hub_is_asked(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")

    failed = failure_of(run, "tuned")

    assert failed.problems == (
        "tuned: is not the name of a model on a hub; write OWNER/NAME",
        (
            f"{hub.address}: takes models only with a token: set HF_TOKEN to one that may write, or run"
            " `hf auth login`"
        ),
    )
    assert failure_of(run).failure_class is FailureClass.ACCESS_DENIED
    assert hub.asked == []


@pytest.mark.parametrize("name", ["a/b/c", "someone/", "someone/two words", "someone/-x", "someone/a..b"])
def test_a_name_that_is_none_is_refused(hub: Hub, run: Path, name: str) -> None:
    failed = failure_of(run, name)

    assert failed.failure_class is FailureClass.INVALID_SPEC
    assert str(failed).startswith(f"{name}: is not the name of a model on a hub")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (
            "hf_unknown",
            NAME,
            "does not know the token; set HF_TOKEN to one that may write",
        ),
        (READER, NAME, "refuses it ("),
        (
            WRITER,
            "others/tuned",
            "refuses it (You don't have the rights to create a model under others); the token",
        ),
    ],
)
def test_a_hub_that_refuses_is_told_with_its_own_words(
    hub: Hub, run: Path, token: str, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)

    failed = failure_of(run, name)

    assert failed.failure_class is FailureClass.ACCESS_DENIED
    assert str(failed).startswith(f"{name}: {hub.address} {said}")
    assert token not in str(failed)
    assert hub.repositories == {}


@pytest.mark.usefixtures("hub")
def test_a_card_that_the_hub_does_not_take_is_told_with_its_words(run: Path) -> None:
    checkpoint = run / best(run)
    (checkpoint / "README.md").write_text("---\nbase_model: {a: b}\n---\n")

    failed = failure_of(checkpoint)

    assert failed.failure_class is FailureClass.INVALID_SPEC
    assert "Invalid metadata in README.md" in str(failed)


def test_a_hub_that_fails_may_be_tried_again(hub: Hub, run: Path) -> None:
    hub.fails_with = 503

    failed = failure_of(run)

    assert failed.failure_class is FailureClass.STORAGE_ERROR
    assert str(failed) == f"{NAME}: {hub.address} fails with 503 (the hub is being repaired); try again later"


def test_a_token_that_the_hub_repeats_is_not_shown(hub: Hub, run: Path) -> None:
    hub.fails_with, hub.words = 400, f"{WRITER} is no good today"

    failed = failure_of(run)

    assert failed.failure_class is FailureClass.INVALID_SPEC
    assert str(failed) == f"{NAME}: {hub.address} does not take it (*** is no good today)"


def test_a_hub_that_cannot_be_reached_is_named(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    failed = failure_of(run)

    assert failed.failure_class is FailureClass.STORAGE_ERROR
    assert str(failed).startswith(f"{NAME}: http://127.0.0.1:9 cannot be reached (")


def test_a_run_without_that_checkpoint_and_what_is_none_are_told(hub: Hub, run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "epoch-0").mkdir(parents=True)
    assert str(failure_of(empty)) == (
        f"{empty}: is neither a run nor a checkpoint; give a run's directory, which holds job.yaml and"
        " epoch-0, or the directory of a checkpoint"
    )
    (empty / "job.yaml").write_text("")
    assert str(failure_of(empty)) == f"{empty}: has no complete checkpoint yet; one is saved after an epoch"
    failed = failure_of(run, checkpoint="epoch-7")
    assert failed.failure_class is FailureClass.MODEL_NOT_FOUND
    assert str(failed) == f"{run}: has no checkpoint epoch-7; there are epoch-0, epoch-1"
    assert str(failure_of(run / "epoch-0", checkpoint="epoch-1")) == (
        f"{run}/epoch-0: is a checkpoint itself, so epoch-1 cannot be taken of it; leave one out"
    )
    assert hub.asked == []


# Before training


def test_a_hub_that_will_take_the_model_is_not_remarked_on(hub: Hub) -> None:
    assert check_hub(NAME, public=False) == []
    assert check_hub(f"{TEAM}/tuned", public=True) == []
    assert writes(hub) == []


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (
            READER,
            NAME,
            f"{NAME}: the token may only read; set HF_TOKEN to one that may write models of {OWNER}",
        ),
        (
            WRITER,
            "others/tuned",
            "others/tuned: the token is that of someone, who writes models of someone, a-team, not of others",
        ),
    ],
)
def test_what_a_token_may_not_is_known_before_training(
    hub: Hub, token: str, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)

    assert check_hub(name, public=False) == [said]
    assert writes(hub) == []


def test_that_a_repository_is_public_is_known_before_training(hub: Hub) -> None:
    hub.repositories[NAME] = Repository(private=False)

    assert check_hub(NAME, public=True) == []
    [remark] = check_hub(NAME, public=False)
    assert remark.startswith(f"{NAME}: is there already, for all to see; say spec.output.public: true if")


def test_a_hub_that_is_away_before_training_is_a_remark(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    [remark] = check_hub(NAME, public=False)

    assert remark.startswith(f"{NAME}: http://127.0.0.1:9 cannot be reached (")


def test_a_hub_that_does_not_answer_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub
    monkeypatch.setattr(push_module, "SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)

        assert check_hub(NAME, public=False) == [
            f"{NAME}: {address} does not answer; it is asked again when training is over"
        ]


def test_without_a_token_or_offline_nothing_can_be_pushed_and_no_hub_is_asked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")

    with pytest.raises(FineTuneError) as raised:
        check_hub(NAME, public=False)

    assert raised.value.failure_class is FailureClass.ACCESS_DENIED
    assert [problem.partition(":")[0] for problem in raised.value.problems] == ["http", "HF_HUB_OFFLINE"]
    assert hub.asked == []


def test_nothing_is_made_on_the_hub_when_merging_fails(hub: Hub, run: Path) -> None:
    checkpoint = run / best(run)
    change(checkpoint / "adapter_config.json", base_model_name_or_path="/gone")

    failed = failure_of(checkpoint, merged=True)

    assert "/gone is not there" in str(failed)
    assert hub.repositories == {}
