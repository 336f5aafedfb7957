"""The model card: what it says, and that its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tests.trainer.training.test_samples import ASKED, asking, sample_lines
from tests.trainer.training_jobs import FULL, LORA, Fields, column, job_of, spec_of, train_here

from finetune_api.numbers import numbers
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Evaluation
from finetune_trainer.checkpoint.card import merged_card, model_card
from finetune_trainer.export.merge import merge

PREFERENCES: Fields = {"preference_tuning_config": {"beta": 0.2}}


def card_of(spec: FineTuneJobSpec, model: Path, directory: Path, evaluation: Evaluation | None = None) -> str:
    plan = job_of(model, directory / "run", LORA).prepared.plan
    computed = numbers(spec, rows=plan.rows, longest_row=60, model_context_length=2048)
    return model_card(spec, plan, computed, 6, evaluation)


def code_of(card: str) -> str:
    (code,) = re.findall(r"(?s)```python\n(.*?)```", card)
    return str(code)


@pytest.mark.parametrize("way", [LORA, FULL], ids=["adapter", "model"])
def test_the_code_of_a_checkpoints_card_runs_and_answers(
    tiny_model: Path,
    tmp_path: Path,
    way: Fields,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = "What is the capital of France?"
    fields: Fields = {**way, **ASKED, "sample_prompts": [question], "sample_max_tokens": 20}
    train_here(asking(job_of(tiny_model, tmp_path, fields, num_epochs=1)))
    checkpoint = tmp_path / "epoch-0"
    code = code_of((checkpoint / "README.md").read_text())
    assert '"content": "..."' in code

    monkeypatch.chdir(checkpoint)
    capsys.readouterr()
    exec(code.replace('"..."', repr(question)), {})  # its reader would do just that
    printed = capsys.readouterr().out

    (_, after) = sample_lines(tmp_path)
    assert printed.strip().startswith(after.samples[0].answer)


def test_a_checkpoints_card_has_the_numbers_of_its_validation(tiny_model: Path, tmp_path: Path) -> None:
    job = job_of(tiny_model, tmp_path, LORA, num_epochs=2)
    train_here(job)

    for epoch, loss in enumerate(column(tmp_path, "evalLoss")):
        card = (tmp_path / f"epoch-{epoch}" / "README.md").read_text()
        assert f"| loss | {loss:.4f} |" in card
        assert f"| steps | {3 * (epoch + 1) * 2} of 12, {epoch + 1} epochs |" in card
        assert f"| data | train.jsonl, {len(job.prepared.train)} rows, " in card


def test_it_names_a_model_of_the_hub_for_its_readers_and_its_programs(
    tiny_model: Path, tmp_path: Path
) -> None:
    spec = spec_of(Path("organisation/small-model"), LORA)
    card = ModelCard(card_of(spec, tiny_model, tmp_path, Evaluation(epoch=1, loss=2.0, perplexity=7.389)))

    assert card.data.to_dict() == {  # type: ignore[no-untyped-call]
        "base_model": "organisation/small-model",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:organisation/small-model", "lora", "transformers"],
    }
    assert "# organisation/small-model, fine-tuned" in card.text
    assert "| method | LoRA, r 8, alpha 8, dropout 0 |" in card.text
    assert "| perplexity | 7.389 |" in card.text
    assert "To be filled in, here and as `license`" in card.text


def test_it_has_names_and_never_paths(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(
        Path("/home/somebody/models/secret-place/llama"),
        LORA | PREFERENCES,
        train_path="s3://key:secret@bucket/private/pairs.jsonl?endpoint_override=host",
    )
    card = card_of(spec, tiny_model, tmp_path)

    assert "base_model" not in card
    assert "| base model | llama |" in card
    assert "| data | pairs.jsonl, " in card
    assert "| beta | 0.2 |" in card
    assert "It was not validated." in card
    for private in ("somebody", "secret", "bucket", "host"):
        assert private not in card


def test_what_users_wrote_is_no_markup(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(Path("organisation/m"), LORA, custom_model_tag="a | b\n# <b>c</b>")

    assert r"# a \| b \# \<b\>c\</b\>" in card_of(spec, tiny_model, tmp_path)


def test_the_same_checkpoint_has_the_same_card(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, LORA)

    assert card_of(spec, tiny_model, tmp_path) == card_of(spec, tiny_model, tmp_path)


# Merged


def test_the_code_of_a_merged_models_card_runs_without_peft_and_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(job_of(tiny_model, tmp_path / "run", LORA, num_epochs=1))
    merge(str(tmp_path / "run/epoch-0"), tmp_path / "merged")
    card = (tmp_path / "merged/README.md").read_text()

    monkeypatch.chdir(tmp_path / "merged")
    capsys.readouterr()
    exec(code_of(card).replace("max_new_tokens=256", "max_new_tokens=4"), {})  # its reader would do just that

    assert capsys.readouterr().out.endswith("\n")
    assert "peft" not in card.lower()
    assert "A LoRA adapter merged into tiny: language modelling" in card
    assert str(tmp_path) not in card


def test_a_merged_models_card_has_what_people_wrote_in_the_adapters(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(Path("organisation/small-model"), LORA | PREFERENCES, quantization="nf4")
    adapters = card_of(spec, tiny_model, tmp_path).replace("---\n", "---\nlicense: mit\n", 1)
    card = ModelCard(merged_card(f"{adapters}\nMy words.\n", "organisation/small-model"))

    assert card.data.to_dict() == {  # type: ignore[no-untyped-call]
        "license": "mit",
        "base_model": "organisation/small-model",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:finetune:organisation/small-model", "dpo", "qlora"],
    }
    assert "My words." in card.text
    assert "quantization_config.json" not in card.text
    assert "the values that its 4 bits stood for" in card.text
    assert "| method | LoRA, r 8, " in card.text


@pytest.mark.parametrize(
    "card", [None, "---\nlibrary_name: peft\n---\n\n# Model Card for Model ID\n\nTODO\n"]
)
@pytest.mark.parametrize(
    ("base", "named"), [("organisation/small-model", "organisation/small-model"), ("/home/me/llama", "llama")]
)
def test_a_merged_models_card_without_one_of_the_adapters_says_what_is_known(
    card: str | None, base: str, named: str
) -> None:
    merged = merged_card(card, base)

    assert f"A LoRA adapter merged into {named}.\n" in merged
    assert "model = AutoModelForCausalLM.from_pretrained(checkpoint)" in code_of(merged)
    assert ("base_model: organisation/small-model" in merged) is (named == base)
    assert "library_name: transformers" in merged
    assert "TODO" not in merged
    assert "/home" not in merged


def test_a_card_of_somebodys_own_gets_how_to_load_the_merged_model() -> None:
    merged = merged_card("# My model\n\nMy words.\n", "organisation/small-model")

    assert "# My model\n\nMy words.\n" in merged
    assert "## How to use it, merged" in merged
