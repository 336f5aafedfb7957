"""Generates docs/configuration.md: `python -m finetune_operator.settings.page > docs/configuration.md`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune_api.devices import NAMES
from finetune_api.reference import default_in_words, type_in_words
from finetune_operator.settings.accelerator_profiles import (
    AcceleratorProfile,
    Toleration,
    effective_profiles,
)
from finetune_operator.settings.configuration import FILE, PREFIX, Configuration

_PAGE = """\
# Configuration of the operator

This page is generated from the models; do not edit it.

The operator reads a YAML file, whose path is in the environment variable `{file}`, and
environment variables, which win: `log_level` in the file is `{prefix}LOG_LEVEL`, `head.cpu` is
`{prefix}HEAD__CPU`. In variables, maps are written as JSON. Without `{file}`
there is no file. What is unknown or wrong stops the start, with every mistake in one message:

    {prefix}TRAINER_IMGAE: is not a variable of the operator; did you mean {prefix}TRAINER_IMAGE?
    /etc/finetune-operator/config.yaml: head.memory: must be a quantity such as 2, 500m or 16Gi, is '16 GB'

Nothing in it is secret: credentials for storage and models come from the jobs' own namespaces.

## Fields

| field | type | default | |
|---|---|---|---|
{fields}

## Accelerator profiles

A job names its accelerator type in `worker_resources`: `accelerator_type:A10G: 0.001`. The type's profile
says to which nodes the workers go and what each asks for; a worker has one device. A node fits when it has
all labels of *one* of the alternatives, so the same profile works on GKE, with Karpenter on AWS, on EKS in
Auto Mode, on AKS, and wherever GPU Feature Discovery labels nodes. All GPU profiles tolerate
{tolerations}.

| type | device | its memory | CPU | memory | nodes, by label |
|---|---|---|---|---|---|
{profiles}

Elsewhere, and for nodes whose devices are shared or partitioned, give a profile of your own. These are its
fields:

| field | type | default | |
|---|---|---|---|
{profile_fields}

A type that is given here replaces the default profile whole, `null` removes it, and a new type is simply
added; its name is what jobs write after `accelerator_type:`. To give the type `RTX-6000` to your own
machines, and take `V100` away:

```yaml
trainer_image: registry.example.com/finetune-trainer:1.0
accelerators:
  RTX-6000:
    resource: nvidia.com/gpu
    node_labels:
      - {{example.com/gpu: [rtx-6000, rtx-6000-ada]}}
    tolerations:
      - {{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}}
    cpu: 6
    memory: 40Gi
    device_memory: 47Gi
  V100: null
accelerator_names:
  my-workstation-*: RTX-6000
default_accelerator: RTX-6000
```

## Other names of accelerators

A type is known in whatever case, with `_` for `-` and with `NVIDIA` in front of it:
`accelerator_type:nvidia_h100`. Files for LLMForge also ask by machine, `worker_resources: {{g5.12xlarge:
0.01}}`, or by a longer name, alone or after `accelerator_type:`. These are known:

| type | other names |
|---|---|
{names}

`accelerator_names` adds to them, replaces one, or removes it with `null`. A key of `worker_resources` that
seems to name a machine or a device, and is not among them, is an error that lists the types and the names of
its form, unless the job names a type besides: `accelerator_type:CPU` is no device. So is `GPU`, where
`default_accelerator` is no device. `finetune validate` and `finetune convert` know this table, and not what
is added to it.
"""


def page() -> str:
    """The page, as Markdown."""
    profiles = effective_profiles({})
    tolerations = dict.fromkeys(_taint(each) for profile in profiles.values() for each in profile.tolerations)
    return _PAGE.format(
        file=FILE,
        prefix=PREFIX,
        fields="\n".join(_field_rows(Configuration)),
        tolerations=" and ".join(f"`{each}`" for each in tolerations),
        profiles="\n".join(_profile_row(name, profile) for name, profile in profiles.items()),
        profile_fields="\n".join(_field_rows(AcceleratorProfile)),
        names="\n".join(_name_rows()),
    )


def _field_rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        description = " ".join((field.description or "").split())
        yield f"| `{name}` | {type_in_words(field.annotation)} | {_default(field)} | {description} |"


def _default(field: FieldInfo) -> str:
    default = field.default
    if isinstance(default, BaseModel):
        parts = default.model_dump(exclude_none=True).items()
        return f"`{{{', '.join(f'{name}: {value}' for name, value in parts)}}}`"
    if isinstance(default, list) and default:
        return "<br>".join(f"`{value}`" for value in default)
    return default_in_words(field)


def _profile_row(name: str, profile: AcceleratorProfile) -> str:
    alternatives = [
        " and ".join(f"`{label}`: {', '.join(values)}" for label, values in alternative.items())
        for alternative in profile.node_labels
    ]
    cells = [
        f"`{name}`",
        f"`{profile.resource}`" if profile.resource else "none",
        str(profile.device_memory or ""),
        str(profile.cpu),
        str(profile.memory),
        "<br>".join(alternatives) or "any",
    ]
    return f"| {' | '.join(cells)} |"


def _name_rows() -> Iterator[str]:
    for accelerator_type in dict.fromkeys(NAMES.values()):
        names = ", ".join(f"`{name}`" for name, each in NAMES.items() if each == accelerator_type)
        yield f"| `{accelerator_type}` | {names} |"


def _taint(toleration: Toleration) -> str:
    value = f"={toleration.value}" if toleration.value else ""
    return f"{toleration.key}{value}:{toleration.effect}"


if __name__ == "__main__":
    print(page(), end="")
