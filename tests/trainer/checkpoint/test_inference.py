"""A checkpoint is ready for use as it was trained: plain libraries load it, and its answers end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from pydantic import JsonValue
from tests.trainer.model_directories import copy_of, set_keys
from tests.trainer.tokenizers_for_tests import byte_level
from tests.trainer.training_jobs import FULL, Fields, files_of, spec_of, train_here
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    GenerationConfig,
    PreTrainedTokenizerBase,
    pipeline,
)

from finetune_trainer.checkpoint.inference import end_tokens, generation_config
from finetune_trainer.export.merge import merge
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import Start, TrainingJob
from finetune_trainer.training.setup import load

ANSWERS = {"Ping?": "Pong.", "One?": "Two, and three.", "Where?": "Here and there.", "Who?": "No one."}

LORA: Fields = {"lora_config": {"r": 32}}
WAYS = {"lora": LORA, "full": FULL}

TURNS: JsonValue = {
    "prompt_format": {
        "bos": "<|begin_of_text|>",
        "system": "Be '{instruction}'.\n",
        "user": "Q: {instruction}\n",
        "assistant": "A: {instruction}\n<|im_end|>\n",
        "trailing_assistant": "A:",
        "default_system_message": "kind",
    }
}


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that ends texts with another token than its template ends turns with, as Qwen's bases do."""
    base = copy_of(tiny_model, tmp_path / "base")
    set_keys(base / "tokenizer_config.json", eos_token="<|pad|>")
    set_keys(base / "config.json", eos_token_id=3)
    set_keys(base / "generation_config.json", eos_token_id=3, pad_token_id=None)
    return base


def write_rows(file: Path) -> str:
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in ANSWERS.items()
    ]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return str(file)


def prepared(base: Path, directory: Path, way: Fields, **fields: JsonValue) -> Prepared:
    """A job that learns four answers by heart."""
    train: Fields = {
        "train_path": write_rows(directory / "train.jsonl"),
        "valid_path": None,
        "task": "instruction_tuning",
        "num_epochs": 80,
        "num_warmup_steps": 0,
        "checkpoint_every_n_epochs": 80,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
    }
    return prepare(spec_of(base, way, **{**train, **fields}))


def trained(
    base: Path, directory: Path, way: Fields, *, stop_after: int | None = None, **fields: JsonValue
) -> Path:
    """Trains the job, and returns its checkpoint, or its snapshot where it is stopped."""
    job = prepared(base, directory, way, **fields)
    run = RunDirectory.open(str(directory / "run"))
    run.claim("kind: FineTuneJob", "a test")
    train_here(TrainingJob("test", Start(job.spec, "fp32", run.path, None), job), stop_after=stop_after)
    return directory / "run" / str(run.newest())


def prompt_of(tokenizer: PreTrainedTokenizerBase, question: str) -> dict[str, torch.Tensor]:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert isinstance(prompt, BatchEncoding)
    return dict(prompt)


def piped_answer(checkpoint: Path, question: str) -> str:
    pipe = pipeline("text-generation", model=str(checkpoint), device="cpu")
    [answer] = pipe([{"role": "user", "content": question}], max_new_tokens=40, do_sample=False)
    return str(answer["generated_text"][-1]["content"])


def generated_answer(checkpoint: Path, question: str) -> tuple[str, bool]:
    """What plain `generate` answers, and whether it stopped by itself.

    An adapter is given its generation config, which peft does not read.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = prompt_of(tokenizer, question)
    adapter = (checkpoint / "adapter_config.json").is_file()
    if adapter:
        model = AutoPeftModelForCausalLM.from_pretrained(checkpoint)
        given: dict[str, object] = {
            "generation_config": GenerationConfig.from_pretrained(checkpoint, max_new_tokens=40)
        }
    else:
        model, given = AutoModelForCausalLM.from_pretrained(checkpoint), {"max_new_tokens": 40}
    tokens = model.generate(**prompt, **given)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip(), len(tokens) < 40


# Where answers end


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_answers_end_where_the_template_ends_turns(base: Path, tmp_path: Path, way: Fields) -> None:
    checkpoint = trained(base, tmp_path, way)
    if way is LORA:
        assert generated_answer(checkpoint, "Ping?") == ("Pong.", True)
        merge(str(checkpoint), tmp_path / "merged")
        checkpoint = tmp_path / "merged"

    for question, answer in ANSWERS.items():
        assert generated_answer(checkpoint, question) == (answer, True)
        assert piped_answer(checkpoint, question) == answer
    assert GenerationConfig.from_pretrained(checkpoint).eos_token_id == [3, 2]
    assert GenerationConfig.from_pretrained(checkpoint).pad_token_id == 3


def test_a_snapshot_is_as_ready_as_a_checkpoint(base: Path, tmp_path: Path) -> None:
    snapshot = trained(base, tmp_path, FULL, stop_after=79)
    assert snapshot.name == "snapshot-79"
    assert generated_answer(snapshot, "One?") == ("Two, and three.", True)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_a_prompt_format_wrote_in_training_its_chat_template_writes_afterwards(
    base: Path, tmp_path: Path, way: Fields
) -> None:
    (base / "chat_template.jinja").unlink()
    checkpoint = trained(base, tmp_path, way, generation_config=TURNS)
    if way is LORA:
        merge(str(checkpoint), tmp_path / "merged")
        checkpoint = tmp_path / "merged"

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.decode(prompt_of(tokenizer, "Ping?")["input_ids"][0]) == (
        "<|begin_of_text|>Be 'kind'.\nQ: Ping?\nA:"
    )
    for question in ANSWERS:
        answer, ended = generated_answer(checkpoint, question)
        assert ended
        assert answer in ANSWERS.values()
        assert piped_answer(checkpoint, question).strip() == answer


def test_a_prompt_format_replaces_the_template_that_was_not_trained_on(base: Path, tmp_path: Path) -> None:
    checkpoint = trained(base, tmp_path, FULL, generation_config=TURNS, num_epochs=1)
    assert "Q: " in (checkpoint / "chat_template.jinja").read_text()


def test_adapters_whose_base_ends_elsewhere_say_how_to_generate_with_plain_peft(
    base: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert any("plain peft generates with" in each for each in prepared(base, tmp_path, LORA).warnings)
    assert not any("plain peft" in each for each in prepared(base, tmp_path, FULL).warnings)
    assert not any("plain peft" in each for each in prepared(tiny_model, tmp_path, LORA).warnings)


# Stopping sequences


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_stopping_sequences_of_one_token_end_answers_without_arguments(
    base: Path, tmp_path: Path, way: Fields
) -> None:
    checkpoint = trained(base, tmp_path, way, generation_config={"stopping_sequences": ["<|im_start|>", ","]})
    if way is LORA:
        merge(str(checkpoint), tmp_path / "merged")
        checkpoint = tmp_path / "merged"

    generation = GenerationConfig.from_pretrained(checkpoint)
    assert AutoTokenizer.from_pretrained(checkpoint).convert_ids_to_tokens(end_tokens(generation)) == [
        "<|pad|>",
        "<|im_end|>",
        "<|im_start|>",
        ",",
    ]
    assert generation.stop_strings is None
    assert generated_answer(checkpoint, "One?") == ("Two,", True)
    assert piped_answer(checkpoint, "One?") == "Two,"


def test_stopping_sequences_of_several_tokens_are_said_to_stop_nothing_by_themselves(
    base: Path, tmp_path: Path
) -> None:
    stopping: JsonValue = {"stopping_sequences": ["### Question", "<|im_end|>"]}
    checkpoint = trained(base, tmp_path, FULL, generation_config=stopping, num_epochs=1)

    [warning] = [
        each for each in prepared(base, tmp_path, FULL, generation_config=stopping).warnings if "###" in each
    ]
    assert warning.startswith("spec.generation_config.stopping_sequences: '### Question' is ")
    assert "stop_strings=['### Question']" in warning
    assert GenerationConfig.from_pretrained(checkpoint).eos_token_id == [3, 2]
    generated_answer(checkpoint, "Ping?")
    piped_answer(checkpoint, "Ping?")


def test_an_end_of_turn_of_several_tokens_is_said_to_stop_nothing(base: Path, tmp_path: Path) -> None:
    turns = {**TURNS["prompt_format"], "assistant": "A: {instruction} [/A]"}  # type: ignore[index, dict-item, call-overload]
    [warning] = [
        each
        for each in prepared(base, tmp_path, FULL, generation_config={"prompt_format": turns}).warnings
        if "[/A]" in each
    ]
    assert warning.startswith("spec.generation_config.prompt_format.assistant: ' [/A]' is ")


# The base's generation config


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),
        ({"temperature": 0.9, "do_sample": False}, {"temperature": 0.9, "do_sample": True}),
        ({"length_penalty": 2.0, "max_length": 99}, {"length_penalty": None, "max_length": None}),
        ({"stop_strings": ["<|im_start|>", "### Q"]}, {"stop_strings": None, "eos_token_id": [3, 2, 1]}),
    ],
    ids=["Vicuna", "explicitly greedy", "beams", "stop strings"],
)
def test_a_base_whose_generation_config_cannot_be_saved_is_trained_and_saved(
    base: Path, tmp_path: Path, way: Fields, given: Fields, kept: Fields
) -> None:
    set_keys(base / "generation_config.json", **given)

    checkpoint = trained(base, tmp_path, way, num_epochs=1)
    if way is LORA:
        merge(str(checkpoint), tmp_path / "merged")
        checkpoint = tmp_path / "merged"

    generation = GenerationConfig.from_pretrained(checkpoint)
    assert {name: getattr(generation, name) for name in kept} == kept
    assert any("generation_config.json" in each for each in prepared(base, tmp_path, way).warnings)
    assert piped_answer(checkpoint, "Ping?") is not None


def test_a_generation_config_that_was_made_ready_changes_no_more() -> None:
    tokenizer = byte_level(pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    base = GenerationConfig(temperature=0.5, stop_strings=["<|im_start|>"])  # type: ignore[no-untyped-call]
    once, remarks = generation_config(base, tokenizer, [1])
    twice, none = generation_config(once, tokenizer, [1])
    assert twice.to_dict() == once.to_dict()
    assert (len(remarks), none) == (1, [])


def test_a_base_that_is_ready_is_left_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = trained(tiny_model, tmp_path, FULL, num_epochs=1)
    ours, bases = (GenerationConfig.from_pretrained(each).to_dict() for each in (checkpoint, tiny_model))
    assert ours == bases


def test_a_merge_of_an_older_checkpoint_with_stop_strings_generates_plainly(
    tiny_model: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(trained(tiny_model, tmp_path, LORA, num_epochs=1), tmp_path / "older")
    set_keys(checkpoint / "generation_config.json", stop_strings=["<|im_start|>"])
    merge(str(checkpoint), tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, 1]
    piped_answer(tmp_path / "merged", "Ping?")


def test_what_is_beside_the_weights_is_the_same_in_each_checkpoint_and_as_the_libraries_write_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    loaded = load(Start(spec_of(tiny_model, FULL), "fp32", str(tmp_path), None), torch.device("cpu"))
    plain, *saved = (tmp_path / each for each in ("plain", "first", "second"))
    loaded.inference.tokenizer.save_pretrained(plain)
    loaded.inference.generation.save_pretrained(plain)
    for directory in saved:
        directory.mkdir()
        loaded.inference.save(directory)

    assert "tokenizer.json" in files_of(plain)
    assert [files_of(directory) for directory in saved] == [files_of(plain)] * 2
