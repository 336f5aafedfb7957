"""The best checkpoint on a hub at the end of a run: by a process of its own, never at the run's expense."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
from huggingface_hub import ModelCard
from tests.trainer.export.test_push import ADAPTER, MODEL
from tests.trainer.writable_hub import WRITER, Hub, hub_of_this_process

from finetune_api.spec import Output
from finetune_api.status import ProgressRecord
from finetune_trainer.export import output as output_module
from finetune_trainer.export.output import deliver, lack_of_memory, memory_to_merge, pushing_process
from finetune_trainer.export.push_process import ENDED, PushRequest
from finetune_trainer.storage.run_directory import RunDirectory

NAME = "someone/tuned"
GIB = 2**30


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    """A finished run that a test may change."""
    return RunDirectory.open(str(shutil.copytree(finished, tmp_path / "run")))


def result_of(run: RunDirectory) -> ProgressRecord:
    result = run.result()
    assert result is not None
    return result


def delivered(run: RunDirectory, output: Output) -> tuple[ProgressRecord, list[str | None]]:
    """The result, which is also what the run directory has, and what was said to be done."""
    told: list[ProgressRecord] = []
    result = deliver(run, output, result_of(run), told.append)
    assert result == result_of(run)
    assert result.doing is None
    assert WRITER not in result.model_dump_json()
    return result, [record.doing for record in told]


def best(run: RunDirectory) -> str:
    [name] = [each.name for each in run.checkpoints() if each.best]
    return name


def test_the_best_checkpoint_is_pushed_as_an_adapter_and_its_commit_is_noted(
    hub: Hub, run: RunDirectory, tiny_model: Path
) -> None:
    result, done = delivered(run, Output(push_to_hub=NAME))

    files = hub.repositories[NAME].files()
    weights = Path(run.path, best(run), "adapter_model.safetensors").read_bytes()
    assert files.keys() == ADAPTER
    assert files["adapter_model.safetensors"] == weights
    assert hub.repositories[NAME].private
    assert done == [f"pushing {best(run)} to {NAME}"]
    assert result.pushed is not None
    assert result.pushed.model_dump() == {
        "repository": NAME,
        "revision": "commit-main-1",
        "url": f"{hub.address}/{NAME}/tree/commit-main-1",
        "merged": False,
    }
    [warning] = result.warnings
    about = "spec.output.push_to_hub: the adapter's base model is"
    assert warning.startswith(f"{about} {tiny_model}, which is not on a hub")


def test_it_is_pushed_merged_with_a_card_that_says_so(hub: Hub, run: RunDirectory) -> None:
    result, done = delivered(run, Output(push_to_hub=NAME, merge=True, public=True))

    files = hub.repositories[NAME].files()
    card = ModelCard(files["README.md"].decode())
    assert files.keys() == MODEL
    assert not hub.repositories[NAME].private
    assert done == [f"merging {best(run)}, to push it to {NAME}", f"pushing {best(run)} to {NAME}"]
    assert (result.pushed is not None and result.pushed.merged, result.warnings) == (True, [])
    assert card.data.get("library_name") == "transformers"
    assert "A LoRA adapter merged into " in card.text
    assert "peft" not in card.text.lower()


def test_pushing_it_again_makes_no_other_commit(hub: Hub, run: RunDirectory) -> None:
    """As after a process that was killed before it could note what it had done."""
    output, before = Output(push_to_hub=NAME), result_of(run)
    first = deliver(run, output, before, lambda _: None)
    second = deliver(run, output, before, lambda _: None)

    assert second == first
    assert len(hub.repositories[NAME].messages()) == 1


# What goes wrong


def test_a_hub_that_fails_is_a_warning_with_the_command_that_does_it_later(
    hub: Hub, run: RunDirectory
) -> None:
    hub.fails_with = 503
    failed, _ = delivered(run, Output(push_to_hub=NAME))

    assert failed.pushed is None
    [warning] = failed.warnings
    assert warning == (
        f"spec.output.push_to_hub: the model was not pushed: {NAME}: {hub.address} fails with 503 (the hub is"
        f" being repaired); try again later; to push it later: finetune push {run.path} {NAME}"
    )
    hub.fails_with = None
    again, _ = delivered(run, Output(push_to_hub=NAME))
    assert again.pushed is not None
    assert not any("not pushed" in each for each in again.warnings)


def test_without_a_token_nothing_is_pushed_and_the_warning_says_what_is_missing(
    hub: Hub, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")

    result, done = delivered(run, Output(push_to_hub=NAME))

    [warning] = result.warnings
    assert "takes models only with a token: set HF_TOKEN" in warning
    assert done == []
    assert hub.asked == []


def test_an_adapter_that_does_not_fit_into_memory_merged_is_pushed_without_and_only_once(
    hub: Hub, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "free_memory", lambda: 2**20)

    result, done = delivered(run, Output(push_to_hub=NAME, merge=True))
    asked = len(hub.asked)
    again, _ = delivered(run, Output(push_to_hub=NAME, merge=True))

    assert hub.repositories[NAME].files().keys() == ADAPTER
    assert done == [f"pushing {best(run)} to {NAME}"]
    assert result.pushed is not None
    assert not result.pushed.merged
    about = "spec.output.merge: the adapter is pushed, and not merged: merging takes about"
    assert result.warnings[0].startswith(about)
    assert result.warnings[0].endswith(f"to merge it: finetune push {run.path} {NAME} --merge")
    assert len(hub.asked) == asked
    assert again.pushed == result.pushed
    assert again.warnings[0] == result.warnings[0]


def test_an_adapter_that_cannot_be_merged_is_pushed_without(hub: Hub, run: RunDirectory) -> None:
    config = Path(run.path, best(run), "adapter_config.json")
    # Of the same length, or the checkpoint would not be complete.
    text = config.read_text()
    config.write_text(text.replace(json.loads(text)["base_model_name_or_path"], "/gone", 1).ljust(len(text)))

    result, done = delivered(run, Output(push_to_hub=NAME, merge=True))

    assert hub.repositories[NAME].files().keys() == ADAPTER
    assert done == [f"merging {best(run)}, to push it to {NAME}", f"pushing {best(run)} to {NAME}"]
    assert "/gone is not there" in result.warnings[0]


@pytest.mark.parametrize(
    ("parameters", "memory", "lacks"),
    [(7 * 10**9, 32 * GIB, True), (7 * 10**9, 34 * GIB, False), (10**6, None, False), (0, GIB, False)],
)
def test_merging_takes_a_model_in_fp32_and_room_for_tied_embeddings(
    parameters: int, memory: int | None, lacks: bool
) -> None:
    assert memory_to_merge(7 * 10**9) == 35 * 10**9 + GIB
    assert bool(lack_of_memory(Output(push_to_hub=NAME, merge=True), parameters, memory)) is lacks
    assert lack_of_memory(Output(push_to_hub=NAME), parameters, memory) is None
    assert lack_of_memory(None, parameters, memory) is None


# Who stops it


def test_who_is_interrupted_leaves_no_process_and_no_files_and_can_push_later(
    hub: Hub, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    hub.goes_on.clear()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def interrupt(record: ProgressRecord) -> None:
        if (record.doing or "").startswith("pushing"):
            assert len(pushing()) == 1
            assert list(scratch.rglob("merged/model.safetensors"))
            raise KeyboardInterrupt

    before = result_of(run)
    with pytest.raises(KeyboardInterrupt):
        deliver(run, Output(push_to_hub=NAME, merge=True), before, interrupt)
    hub.goes_on.set()

    assert pushing() == []
    assert list(scratch.iterdir()) == []
    assert result_of(run) == before


def test_a_process_that_is_killed_is_a_warning(hub: Hub, run: RunDirectory) -> None:
    def kill(_record: ProgressRecord) -> None:
        [process] = pushing()
        process.send_signal(signal.SIGKILL)
        hub.goes_on.set()

    hub.goes_on.clear()
    result = deliver(run, Output(push_to_hub=NAME), result_of(run), kill)

    assert result.pushed is None
    assert "its process was killed, as the kernel does where memory runs out" in result.warnings[0]


def test_a_process_whose_other_is_gone_ends(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub_of_this_process(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch, tmp_path)
        request = PushRequest(checkpoint=f"{run.path}/{best(run)}", name=NAME, merged=False, public=False)
        with pushing_process() as process:
            assert process.stdin is not None
            process.stdin.write(request.model_dump_json() + "\n")
            process.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.stdin.close()
            assert process.wait(60) == ENDED


def pushing() -> list[psutil.Process]:
    """The processes that push for this one."""
    children = psutil.Process(os.getpid()).children()
    return [each for each in children if "finetune_trainer.export.push_process" in each.cmdline()]
