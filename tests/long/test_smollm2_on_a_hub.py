"""A real model that was tuned is pushed to a hub, and answers from there by its name alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.cli.command_line import only_run, process
from tests.cli.test_push import environment
from tests.trainer.writable_hub import writable_hub

from finetune_cli.chat import ChatAnswers

pytestmark = pytest.mark.timeout(1800)

QUESTION = "What does `os.getpid` do?"
PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
name, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
chat = [{"role": "user", "content": question}]
asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :]
print(json.dumps(tokenizer.decode(answer, skip_special_tokens=True)))
"""
"""What anybody does with a model on the hub; it knows nothing of the project."""


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_it_answers_by_its_name_as_finetune_chat_does(
    smollm2: Path,
    stdlib_train: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    merged: bool,
) -> None:
    (tmp_path / "train.jsonl").write_text("".join(stdlib_train.read_text().splitlines(keepends=True)[:32]))
    spec = {
        "model_id": str(smollm2),
        "train_path": "train.jsonl",
        "task": "instruction_tuning",
        "lora_config": {"r": 8},
        "learning_rate": 1e-3,
        "num_warmup_steps": 2,
        "num_epochs": 1,
        "train_batch_size_per_device": 4,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    trained = process("run", "job.yaml", cwd=tmp_path)
    assert trained.code == 0, trained.err
    run = only_run(tmp_path / "finetune-runs")
    asked = process("chat", run, "--prompt", QUESTION, "--max-tokens", "24", "-o", "json", cwd=tmp_path)
    base, tuned = (answer.text for answer in ChatAnswers.model_validate_json(asked.out).answers)
    assert base != tuned

    with writable_hub() as hub:
        for name, value in environment(hub, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        pushed = process("push", run, "someone/tuned", *(["--merge"] if merged else []), cwd=tmp_path)
        assert pushed.code == 0, pushed.err
        loaded = subprocess.run(
            [sys.executable, "-c", PLAIN, "someone/tuned", QUESTION],
            env={"PATH": "", **environment(hub, tmp_path / "empty")},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=600,
        )

    assert json.loads(loaded.stdout.splitlines()[-1]).strip() == tuned.strip()
