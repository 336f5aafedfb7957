"""Trains a YAML's LoRA with torch, transformers and peft alone, as a person would write it down.

    python bench/plain_script.py JOB.yaml OUTPUT_DIRECTORY

`bench/start.py` measures `finetune run` against it. It reads the few fields that such a job needs, trains one
epoch of conversations of one question and one answer each, on a GPU if there is one, in fp32, with a constant
learning rate. After each optimizer step it prints a line of JSON: the step, counted from 1, and its loss, the
mean over the step's trained tokens before the update. The adapter is saved at the end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

NOT_TRAINED = -100
"""The label of a token that does not count in the loss."""


def main(job: Path, output: Path) -> None:
    """Trains the job and saves its adapter in `output`."""
    spec = yaml.safe_load(job.read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() else "cpu"

    tokenizer = AutoTokenizer.from_pretrained(spec["model_id"])
    examples: list[tuple[list[int], list[int]]] = []
    for line in Path(spec["train_path"]).read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        question = str(
            tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        )
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # What counts is the answer and the end of its turn, not the line feed after it.
        answer_start, answer_end = len(question), len(text.rstrip())
        labels = [
            token if start < answer_end and end > answer_start else NOT_TRAINED
            for token, (start, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        ]
        examples.append((tokens["input_ids"], labels))

    base = AutoModelForCausalLM.from_pretrained(spec["model_id"], dtype=torch.float32)
    torch.manual_seed(spec["seed"])
    lora = LoraConfig(**spec["lora_config"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=spec["learning_rate"], weight_decay=spec["weight_decay"], fused=True
    )

    model.train()
    order = np.random.default_rng([spec["seed"], 0]).permutation(len(examples))
    batch_size = spec["train_batch_size_per_device"]
    for step, start in enumerate(range(0, len(order), batch_size), start=1):
        batch = [examples[index] for index in order[start : start + batch_size]]
        length = max(len(ids) for ids, _ in batch)
        input_ids = torch.full((len(batch), length), tokenizer.pad_token_id)
        targets = torch.full((len(batch), length), NOT_TRAINED)
        attention_mask = torch.zeros((len(batch), length), dtype=torch.long)
        for row, (ids, its_labels) in enumerate(batch):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            targets[row, : len(ids)] = torch.tensor(its_labels)
            attention_mask[row, : len(ids)] = 1

        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": targets}
        loss = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, spec["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        print(json.dumps({"step": step, "loss": loss.item()}), flush=True)

    model.save_pretrained(str(output))
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
