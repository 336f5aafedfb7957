"""Field types that several models share: lenient numbers, paths, and unions that LLMForge allows."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Strict, Tag

PATH_SCHEMES = ("s3", "gs", "hf", "pvc", "configmap", "file")
STORAGE_SCHEMES = ("s3", "gs", "pvc", "file")

_PVC = re.compile(r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?")
_CONFIGMAP = re.compile(r"configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+")


def _not_boolean(value: object) -> object:
    # pydantic reads true as 1; a person who writes `num_devices: true` has made a mistake.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def scheme(path: str) -> str:
    """The scheme of a path (`s3` of `s3://bucket/key`), empty for a plain path."""
    head, separator, _ = path.partition("://")
    return head if separator else ""


def _check_path(path: str, schemes: tuple[str, ...]) -> str:
    found = scheme(path)
    if found and found not in schemes:
        known = ", ".join(f"{name}://" for name in schemes)
        raise ValueError(f"{found}:// is not supported; use a plain path or one of {known}")
    if found == "pvc" and not _PVC.fullmatch(path):
        raise ValueError("must be pvc://CLAIM/path, with a claim name in lower case")
    if found == "configmap" and not _CONFIGMAP.fullmatch(path):
        raise ValueError("must be configmap://NAME/KEY")
    return path


def _input_path(path: str) -> str:
    return _check_path(path, PATH_SCHEMES)


def _storage_path(path: str) -> str:
    return _check_path(path, STORAGE_SCHEMES)


Integer = Annotated[int, BeforeValidator(_not_boolean)]
"""An integer, also written as `"8"` or `150_323_855_360`."""

Number = Annotated[float, BeforeValidator(_not_boolean), Field(allow_inf_nan=False)]
"""A number, also written as `1e-4`, which YAML 1.1 reads as text."""

Amount = Annotated[int | float, BeforeValidator(_not_boolean), Field(allow_inf_nan=False)]
"""A number that stays an integer when it is one: bytes of memory."""

Flag = Annotated[bool, Strict()]
"""true or false, and nothing that merely resembles it."""

InputPath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_input_path)]
"""Where data or a model is read from: `s3://`, `gs://`, `hf://`, `pvc://CLAIM/path`, `configmap://NAME/KEY` or a plain path."""

StoragePath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_storage_path)]
"""Where runs are written: `s3://`, `gs://`, `pvc://CLAIM/path` or a plain path."""

ShortText = Annotated[str, Field(min_length=1, max_length=256)]
JsonObject = Annotated[dict[str, JsonValue], Field(max_length=256)]
"""An object whose keys are not typed here."""


class SpecModel(BaseModel):
    """Base of all spec models: unknown keys are errors, and a docstring after each field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class HubRepository(SpecModel):
    """A model on the Hugging Face hub."""

    repo_id: Annotated[str, Field(min_length=1, max_length=256)]
    """`organisation/name`."""


def _shape(value: object) -> str:
    if isinstance(value, dict | BaseModel):
        return "object"
    return "list" if isinstance(value, list | tuple) else "text"


CheckpointPath = Annotated[
    Annotated[InputPath, Tag("text")] | Annotated[HubRepository, Tag("object")],
    Discriminator(_shape, custom_error_type="path_or_repository", custom_error_message="must be a path or {repo_id: organisation/name}"),
]
"""A path, or `{repo_id: organisation/name}`, as LLMForge takes both."""

TextList = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=4096)]
TextOrList = Annotated[
    Annotated[Annotated[str, Field(min_length=1, max_length=4096)], Tag("text")] | Annotated[TextList, Tag("list")],
    Discriminator(_shape, custom_error_type="text_or_list", custom_error_message="must be a text or a list of texts"),
]
