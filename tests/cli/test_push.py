from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import PeftModel
from pydantic import JsonValue
from tests.cli.command_line import Ended, json_of, only_run, process, small_job
from tests.trainer.writable_hub import WRITER, Hub, Repository, writable_hub
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.storage.run_directory import RunDirectory

LOADED = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
name, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
chat = [{"role": "user", "content": "hello"}]
tokens = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
with torch.no_grad():
    torch.save((tokens["input_ids"], model.eval()(**tokens).logits), out)
"""
"""What anybody does with a model on the hub; it knows nothing of the project."""


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": WRITER,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }


def loaded(hub: Hub, name: str, directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of a chat and their logits, by a process whose cache is empty."""
    out = directory / f"{name.replace('/', '-')}.pt"
    subprocess.run(
        [sys.executable, "-c", LOADED, name, str(out)],
        env={"PATH": "", **environment(hub, directory / f"cache-{out.stem}")},
        check=True,
        timeout=240,
    )
    tokens, logits = torch.load(out)
    return tokens, logits


@torch.no_grad()
def logits_of(model: PreTrainedModel | PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=tokens).logits
    return logits


def test_a_run_on_a_model_of_the_hub_is_pushed_and_loaded_from_there_by_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub() as hub:
        hub.repositories["someone/base"] = Repository(private=False)
        hub.repositories["someone/base"].files().update(
            {file.name: file.read_bytes() for file in tiny_model.iterdir()}
        )
        for variable, value in environment(hub, tmp_path / "home").items():
            monkeypatch.setenv(variable, value)
        small_job(tmp_path, tiny_model, model_id="someone/base", learning_rate=1e-2)
        trained = process("run", "job.yaml", cwd=tmp_path)
        assert trained.code == 0, trained.err
        run = only_run(tmp_path / "finetune-runs")
        best = run / "epoch-1"
        [kept] = [each.name for each in RunDirectory.open(str(run)).checkpoints() if each.best]

        given = ["--merge", "--public", "--message", "whole"]
        adapter = process("push", run, "someone/adapter", "--checkpoint", "epoch-1", cwd=tmp_path)
        merged = process("push", best, "someone/merged", *given, cwd=tmp_path)

        server = process("serve", run, "--as", "vllm", cwd=tmp_path)

        assert (adapter.code, adapter.err) == (0, "")
        assert (merged.code, merged.err) == (0, "")
        assert f"files of {best} are at {hub.address}/someone/adapter\n" in adapter.out
        assert f"files of {best}, merged, are at {hub.address}/someone/merged\n" in merged.out
        assert "    model = AutoModelForCausalLM.from_pretrained('someone/adapter')\n" in adapter.out
        assert not any(WRITER in text for ended in (adapter, merged) for text in (ended.out, ended.err))
        assert hub.repositories["someone/merged"].messages() == ["whole"]
        assert (server.code, server.err) == (0, "")
        assert server.out.startswith("vllm serve someone/base \\\n    --enable-lora \\\n")
        assert f"--lora-modules tiny={RunDirectory.open(str(run)).checkpoint_path(kept)} " in server.out
        assert not any(path.startswith("state/") for path in hub.repositories["someone/adapter"].files())

        tokens, by_adapter = loaded(hub, "someone/adapter", tmp_path)
        _, by_merged = loaded(hub, "someone/merged", tmp_path)

    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = logits_of(base, tokens)
    expected = logits_of(PeftModel.from_pretrained(base, str(best)), tokens)
    assert float((before - expected).abs().max()) > 1e-2
    # Threads may be as many as they like, and sums in another order.
    assert float((by_adapter - expected).abs().max()) <= 1e-5
    assert float((by_merged - expected).abs().max()) <= 1e-5


def test_a_run_that_is_to_be_pushed_merged_is_on_the_hub_at_its_end_and_loads_without_peft(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub() as hub:
        for variable, value in environment(hub, tmp_path / "home").items():
            monkeypatch.setenv(variable, value)
        output: JsonValue = {"push_to_hub": "someone/tuned", "merge": True, "public": True}
        small_job(tmp_path, tiny_model, learning_rate=1e-2, output=output)
        trained = process("run", "job.yaml", cwd=tmp_path)
        shown = process("run", "job.yaml", "--output", "json", cwd=tmp_path)

        assert (trained.code, trained.err) == (0, "")
        [best] = [
            each.name
            for each in RunDirectory.open(str(only_run(tmp_path / "finetune-runs"))).checkpoints()
            if each.best
        ]
        url = f"{hub.address}/someone/tuned/tree/commit-main-1"
        assert f"\nmerging {best}, to push it to someone/tuned\npushing {best} to" in trained.out
        assert f"\n  pushed to        {url}, merged\n" in trained.out
        status = cast("dict[str, dict[str, str]]", json_of(shown)["status"])
        assert status["pushed"]["url"] == url
        assert len(hub.repositories["someone/tuned"].messages()) == 1
        assert WRITER not in trained.out + shown.out + shown.err
        tokens, by_merged = loaded(hub, "someone/tuned", tmp_path)

    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = logits_of(base, tokens)
    run = only_run(tmp_path / "finetune-runs")
    expected = logits_of(PeftModel.from_pretrained(base, str(run / best)), tokens)
    assert float((before - expected).abs().max()) > 1e-2
    assert float((by_merged - expected).abs().max()) <= 1e-5
    assert "commit-main-1" in (run / "result.json").read_text()
    assert not any(WRITER in file.read_text() for file in run.glob("*.*") if file.is_file())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["push", "absent", "someone/tuned"], "absent: is neither a run nor a checkpoint"),
        (["push", "absent", "tuned"], "tuned: is not the name of a model on a hub; write OWNER/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_one_error(tmp_path: Path, arguments: list[str], said: str) -> None:
    ended: Ended = process(*arguments, cwd=tmp_path, HF_TOKEN=WRITER, HF_ENDPOINT="http://127.0.0.1:9")

    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1
