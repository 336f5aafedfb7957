"""Answers are those that transformers and PEFT generate by themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from tests.trainer.chat.answering_runs import ANSWERS, run_that_answers
from tests.trainer.checkpoint.test_inference import TURNS
from tests.trainer.training_jobs import FULL, LORA, Fields
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.chat.checkpoint import find_checkpoint
from finetune_trainer.chat.models import Answer, Models, Sampling, load_models
from finetune_trainer.data.rows import Message
from finetune_trainer.model.load import load_tokenizer
from finetune_trainer.tasks.task import task_of
from make_tiny_model import make_tiny_model

WAYS: dict[str, Fields] = {
    "lora": LORA,
    "full": FULL,
    "some tokens": {"lora_config": {"r": 8, "trainable_token_indices": [5, 6, 7]}},
    "in 4 bits": {"lora_config": {"r": 32}, "quantization": "nf4"},
}
ONE_EPOCH: Fields = {"num_epochs": 1, "checkpoint_every_n_epochs": 1}
FEW = Sampling(max_tokens=16)

QUESTION = (Message("user", "Ping?"),)


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(way: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_that_answers(tiny_model, tmp_path_factory.mktemp("chat"), WAYS[way])


@pytest.fixture(scope="module")
def models(run: Path) -> Models:
    return load_models(find_checkpoint(str(run)))


def by_transformers(model: PreTrainedModel | PeftModel, checkpoint: Path, *messages: Message) -> str:
    """What `generate` answers, with the tokenizer and the generation config of the checkpoint."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint)
    turns = [{"role": each.role, "content": each.content} for each in messages]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert isinstance(prompt, BatchEncoding)
    config = GenerationConfig.from_pretrained(checkpoint, max_new_tokens=16)
    tokens = model.eval().generate(**prompt, generation_config=config)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def base_alone(model: Path, way: str) -> PreTrainedModel:
    """The base as transformers loads it; in 4 bits it computes in fp32 on every CPU, as in training."""
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    given: dict[str, object] = {"quantization_config": quantization} if way == "in 4 bits" else {}
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **given)
    for module in loaded.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return loaded


def tuned_alone(model: Path, checkpoint: Path, way: str) -> PreTrainedModel | PeftModel:
    if way == "full":
        return base_alone(checkpoint, way)
    return PeftModel.from_pretrained(base_alone(model, way), str(checkpoint))


@pytest.mark.parametrize("question", ANSWERS)
def test_both_answer_as_they_do_in_transformers_alone(
    models: Models, run: Path, way: str, tiny_model: Path, question: str
) -> None:
    checkpoint = Path(find_checkpoint(str(run)).path)
    asked = Message("user", question)

    tuned, base = models.answer("tuned", [asked], FEW), models.answer("base", [asked], FEW)

    assert tuned.text == by_transformers(tuned_alone(tiny_model, checkpoint, way), checkpoint, asked)
    assert base.text == by_transformers(base_alone(tiny_model, way), checkpoint, asked)
    assert tuned.text == ANSWERS[question] != base.text
    assert (tuned.stopped, base.stopped, base.tokens) == ("end", "length", 16)
    assert models.answer("tuned", [asked], FEW) == tuned, "after the base has answered"


def test_a_conversation_is_asked_as_a_whole(models: Models, run: Path, way: str, tiny_model: Path) -> None:
    checkpoint = Path(find_checkpoint(str(run)).path)
    talk = [
        Message("system", "Be brief."),
        Message("user", "Ping?"),
        Message("assistant", "Pong."),
        Message("user", "Who?"),
    ]

    said = models.answer("tuned", talk, FEW)

    assert said.text == by_transformers(tuned_alone(tiny_model, checkpoint, way), checkpoint, *talk)


def test_what_is_said_bit_by_bit_is_the_answer(models: Models) -> None:
    parts: list[str] = []

    answer = models.answer("tuned", [Message("user", "Where?")], FEW, parts.append)

    assert len(parts) > 1
    assert "".join(parts) == answer.text == ANSWERS["Where?"]


def test_one_model_alone_needs_nothing_of_the_other(run: Path, way: str, tmp_path: Path) -> None:
    tuned = load_models(find_checkpoint(str(run)), ["tuned"])

    assert tuned.sources == {"tuned": find_checkpoint(str(run)).path}
    assert tuned.answer("tuned", QUESTION, FEW).text == "Pong."
    if way == "full":
        alone = Path(shutil.copytree(find_checkpoint(str(run)).path, tmp_path / "alone"))
        assert (
            load_models(find_checkpoint(str(alone)), ["tuned"]).answer("tuned", QUESTION, FEW).text == "Pong."
        )
        with pytest.raises(FineTuneError, match=r"no job\.yaml beside its directory .* --only tuned"):
            load_models(find_checkpoint(str(alone)))


# Any job


@pytest.mark.parametrize(
    "fields", [{"generation_config": TURNS}, {"task": "causal_lm"}], ids=["prompt_format", "causal_lm"]
)
def test_a_question_is_written_as_in_training(tiny_model: Path, tmp_path: Path, fields: Fields) -> None:
    found = find_checkpoint(str(run_that_answers(tiny_model, tmp_path, LORA | fields)))
    spec = found.spec()
    assert spec is not None

    models = load_models(found)

    talk = [Message("system", "Brief."), *QUESTION, Message("assistant", "Pong."), *QUESTION]
    for messages in (QUESTION, talk):
        assert models.chat.prompt(messages) == task_of(spec).chat(load_tokenizer(spec)).prompt(messages)
    assert models.answer("tuned", QUESTION, FEW).text.strip() == "Pong."


@pytest.mark.parametrize("lora", [LORA, FULL], ids=["lora", "full"])
def test_a_classifier_answers_with_a_label(tiny_model: Path, tmp_path: Path, lora: Fields) -> None:
    labels = ["[[sport]]", "[[weather]]"]
    rows = {"Rain?": labels[1], "Goal!": labels[0]}
    classes: Fields = {"task": None, "classifier_config": {"label_tokens": [*labels]}}
    run = run_that_answers(tiny_model, tmp_path, lora | classes, rows)

    models = load_models(find_checkpoint(str(run)))

    for question, label in rows.items():
        said = models.answer("tuned", [Message("user", question)])
        assert (said.text, said.tokens, said.stopped) == (label, 1, "end")
        assert models.answer("base", [Message("user", question)]).text in labels


# Sampling


def test_with_a_temperature_answers_differ(models: Models) -> None:
    said = {models.answer("base", QUESTION, Sampling(16, temperature=2.0)).text for _ in range(4)}

    assert len(said) > 1


def test_an_answer_ends_where_the_model_takes_no_more(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "short", max_position_embeddings=48)
    run = run_that_answers(base, tmp_path, LORA | ONE_EPOCH, {"Ping?": "Pong."})
    models = load_models(find_checkpoint(str(run)))
    asked = len(models.chat.prompt(QUESTION))

    answer = models.answer("base", QUESTION, Sampling(max_tokens=500))
    with pytest.raises(FineTuneError) as raised:
        models.answer("base", [Message("user", "Ping? " * 40)])

    assert answer == Answer(answer.text, 48 - asked, "length")
    assert "tokens, and the model takes 48; begin a new one" in str(raised.value)


# What is wrong


def problem_of(checkpoint: Path) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised:
        load_models(find_checkpoint(str(checkpoint)))
    return raised.value


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one epoch."""
    return run_that_answers(tiny_model, tmp_path_factory.mktemp("adapter"), LORA | ONE_EPOCH) / "epoch-0"


def with_base(adapter: Path, directory: Path, base: Path) -> Path:
    copied = Path(shutil.copytree(adapter, directory))
    config = copied / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(base)}))
    return copied


def test_a_base_that_is_gone(adapter: Path, tmp_path: Path) -> None:
    error = problem_of(with_base(adapter, tmp_path / "adapter", tmp_path / "gone"))

    assert error.failure_class is FailureClass.MODEL_NOT_FOUND
    assert str(error).startswith(
        f"{tmp_path}/adapter/adapter_config.json: base_model_name_or_path: {tmp_path}/gone is not there"
    )


def test_an_adapter_of_another_model(adapter: Path, tmp_path: Path) -> None:
    deeper = make_tiny_model(tmp_path / "other")
    config = json.loads((deeper / "config.json").read_text())
    other = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        AutoModelForCausalLM.from_pretrained(deeper).config.__class__(**{**config, "intermediate_size": 96})
    )
    other.save_pretrained(deeper)

    error = problem_of(with_base(adapter, tmp_path / "adapter", deeper))

    assert error.failure_class is FailureClass.INVALID_SPEC
    assert str(error).startswith(f"{tmp_path}/adapter: the adapter does not fit its base model: ")


def test_a_damaged_adapter(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    copied = with_base(adapter, tmp_path / "adapter", tiny_model)
    (copied / "adapter_model.safetensors").write_bytes(b"nothing")

    assert f"{copied}/adapter_model.safetensors is damaged" in str(problem_of(copied))
