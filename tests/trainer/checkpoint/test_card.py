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
from finetune_trainer.checkpoint.card import model_card

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
