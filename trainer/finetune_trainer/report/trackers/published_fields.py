"""Selects the fields of a spec that an experiment tracker gets: what is trained and how, and no secrets."""

from __future__ import annotations

import re

from pydantic import BaseModel, JsonValue

from finetune_api.spec import FineTuneJobSpec

PRIVATE = {"cluster", "logger", "run_policy", "suspend"}
"""Fields about where and when the job runs, which are left out. `cluster.env` may hold passwords."""

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def published_fields(spec: FineTuneJobSpec) -> dict[str, JsonValue]:
    """The fields that are set, by their path below `spec`, such as `lora_config.r`.

    Lists and maps of free keys are one value each. Credentials in URLs
    (`s3://key:secret@bucket/...`) are removed.
    """
    fields = _set_fields(spec, "")
    return {path: _public(value) for path, value in fields.items() if path.partition(".")[0] not in PRIVATE}


def _set_fields(model: BaseModel, prefix: str) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = {}
    dumped = model.model_dump(mode="json", exclude_unset=True)
    for name, value in dumped.items():
        part = getattr(model, name)
        if isinstance(part, BaseModel) and value:
            fields |= _set_fields(part, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def without_credentials(text: str) -> str:
    """The text without what stands before the `@` of a URL."""
    return _CREDENTIALS.sub("", text)


def _public(value: JsonValue) -> JsonValue:
    match value:
        case str():
            return without_credentials(value)
        case list():
            return [_public(part) for part in value]
        case dict():
            return {key: _public(part) for key, part in value.items()}
        case _:
            return value
