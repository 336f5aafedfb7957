"""The model card of a checkpoint, README.md: what was trained, on what, how well, and how it is loaded.

The same checkpoint always has the same card. It names data and models by their names, never by their paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from finetune_api.fields import HubRepository, scheme
from finetune_api.numbers import Numbers
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Evaluation, Plan
from finetune_trainer.storage.run_directory import CARD

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_TASKS = {
    "causal_lm": "language modelling (all tokens are trained)",
    "instruction_tuning": "instruction tuning (the assistant's tokens are trained)",
    "preference_tuning": "direct preference optimisation",
    "classification": "classification by one token",
}

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ summary }}

## How to use it

```python
{{ code }}
```

## Training

| | |
|---|---|
{% for name, value in training -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Validation

{% if validation -%}
| | |
|---|---|
{% for name, value in validation -%}
| {{ name }} | {{ value }} |
{% endfor %}
{%- else -%}
It was not validated.
{% endif %}
## Licence

To be filled in, here and as `license` in the first lines of this file: it depends on those of the base model
and of the data.
"""

_ASK = """\
question = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(
    question, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
generation = GenerationConfig.from_pretrained(checkpoint)
answer = model.generate(**inputs, generation_config=generationLENGTH)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=SKIP))"""

_LOADS = {
    "adapter": """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig

checkpoint = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = AutoPeftModelForCausalLM.from_pretrained(checkpoint)
""",
    "model": """\
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

checkpoint = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = AutoModelForCausalLM.from_pretrained(checkpoint)
""",
}

_LICENCE = _TEMPLATE[_TEMPLATE.index("## Licence") :]
_ADAPTER_OF, _MERGED_INTO = "A LoRA adapter of", "A LoRA adapter merged into"
_HELD = " Its base was held in 4 bits, as `quantization_config.json` says."
_ROUNDED = " The base is as the adapter was trained on it: the values that its 4 bits stood for."
_OF_PEFT = "# Model Card for Model ID"
"""In the card that PEFT writes, to be filled in."""
_OF_ADAPTERS = ("lora", "transformers")
"""Tags that a whole model does not have."""


def model_card(
    spec: FineTuneJobSpec, plan: Plan, numbers: Numbers, step: int, evaluation: Evaluation | None
) -> str:
    """The card of the model after `step` steps, as Markdown. `evaluation` is this model's, if it has one."""
    hub = _hub_name(spec)
    data = ModelCardData(
        base_model=hub,
        library_name="transformers" if spec.lora_config is None else "peft",
        pipeline_tag="text-generation",
        tags=sorted(_tags(spec, hub)),
    )
    base = hub or _name(spec.model_id)
    kind = "model" if spec.lora_config is None else "adapter"
    what = _ADAPTER_OF if kind == "adapter" else "A fine-tuned"
    held = _HELD if spec.quantization else ""
    labels = spec.trained_task == "classification"  # of one token each, which may be a special one
    asking = _ASK.replace("SKIP", str(not labels)).replace("LENGTH", "" if labels else ", max_new_tokens=256")
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=_cell(spec.custom_model_tag or f"{base}, fine-tuned"),
        summary=f"{what} {_cell(base)}: {_TASKS[spec.trained_task]}.{held}",
        code=f"{_LOADS[kind]}\n{asking}",
        training=[(name, _cell(value)) for name, value in _training(spec, plan, numbers, step, base)],
        validation=[] if evaluation is None else list(_validation(plan, evaluation)),
    )
    return str(card)


def merged_card(card: str | None, base: str) -> str:
    """The card of the model that an adapter makes with its base, from the adapter's own card.

    What people have written in that stays; PEFT's card, which is to be filled in, is replaced. `base` is what
    the adapter names as its base model.
    """
    hub = base if _HUB.fullmatch(base) and not Path(base).exists() else None
    named = _cell(hub or _name(base))
    if card is None or _OF_PEFT in card:
        data = ModelCardData(base_model=hub, pipeline_tag="text-generation")
        card = f"---\n{data.to_yaml()}\n---\n\n# {named}, fine-tuned\n\n{_ADAPTER_OF} {named}.\n\n{_LICENCE}"
    try:
        merged = ModelCard(card, ignore_metadata_errors=True)
    except ValueError:  # what stands in its first lines is none of ours
        return card
    text = merged.text.replace(_ADAPTER_OF, _MERGED_INTO).replace(_HELD, _ROUNDED)
    if _LOADS["adapter"] in text:
        text = text.replace(_LOADS["adapter"], _LOADS["model"])
    else:
        text = f"{text.rstrip()}\n\n## How to use it, merged\n\n```python\n{_LOADS['model']}```\n"
    tags = [each for each in merged.data.get("tags") or [] if each not in _OF_ADAPTERS]
    merged.data["library_name"] = "transformers"
    tags = [each.replace("base_model:adapter:", "base_model:finetune:") for each in tags]
    merged.data["tags"] = tags or None
    merged.text = text
    return str(merged)


def write_card(directory: Path, card: str) -> None:
    """Writes a card into a checkpoint's directory, in place of PEFT's own."""
    (directory / CARD).write_text(card, encoding="utf-8")


def _tags(spec: FineTuneJobSpec, hub: str | None) -> Iterator[str]:
    if hub is not None:
        yield f"base_model:{'finetune' if spec.lora_config is None else 'adapter'}:{hub}"
    if spec.lora_config is not None:
        yield "lora"
        yield "transformers"
    if spec.quantization is not None:
        yield "qlora"
    if spec.trained_task == "preference_tuning":
        yield "dpo"


def _training(
    spec: FineTuneJobSpec, plan: Plan, numbers: Numbers, step: int, base: str
) -> Iterator[tuple[str, str]]:
    yield "base model", base
    names = ", ".join(_name(source.path) for source in spec.sources)
    yield "data", f"{names}, {plan.rows:,} rows, {plan.tokens:,} tokens"
    yield "method", _method(spec)
    if spec.trained_task == "preference_tuning":
        yield "beta", f"{spec.preferences.beta:g}"
    yield "steps", f"{step:,} of {numbers.total_steps:,}, {step / numbers.steps_per_epoch:g} epochs"
    yield "rows of a step", f"{numbers.effective_batch_size:,}"
    yield "context length", f"{plan.context_length:,} tokens"
    rate, warmup = numbers.learning_rate, numbers.num_warmup_steps
    yield "learning rate", f"{rate:g}, {spec.lr_scheduler_type} after {warmup} steps of warm-up"
    yield (
        "optimizer",
        f"AdamW, weight decay {spec.weight_decay:g}, gradients clipped to {spec.max_grad_norm:g}",
    )
    yield "seed", str(spec.seed)


def _method(spec: FineTuneJobSpec) -> str:
    lora = spec.lora_config
    if lora is None:
        return "all parameters"
    words = [f"LoRA, r {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g}"]
    words += ["DoRA"] if lora.use_dora else []
    words += ["base in 4 bits (nf4)"] if spec.quantization is not None else []
    return ", ".join(words)


def _validation(plan: Plan, evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    yield "rows", f"{plan.validation_rows:,}"
    yield "loss", f"{evaluation.loss:.4f}"
    if evaluation.perplexity is not None:
        yield "perplexity", f"{evaluation.perplexity:.4g}"
    for name, value in evaluation.metrics.items():
        yield name, f"{value:.4g}"


def _hub_name(spec: FineTuneJobSpec) -> str | None:
    """The base model's name on the hub, `owner/name`; None of one that is in a directory or a bucket."""
    path = spec.initial_base_model_ckpt_path
    model = path.repo_id if isinstance(path, HubRepository) else path or spec.model_id
    if scheme(model) == "hf":
        return model.removeprefix("hf://")
    return model if _HUB.fullmatch(model) and not Path(model).exists() else None


def _name(path: str) -> str:
    """The last part of a path, without what may follow it in a URL."""
    return path.partition("?")[0].rstrip("/").rpartition("/")[2] or path


def _cell(text: str) -> str:
    """A text that stays in its cell of a table, and is no markup."""
    return re.sub(r"([\\|`*_<>\[\]{}#])", r"\\\1", " ".join(text.split()))
