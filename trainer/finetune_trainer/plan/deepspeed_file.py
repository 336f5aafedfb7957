"""Reads a job's DeepSpeed file where it is; elsewhere its name says what it asks for."""

from __future__ import annotations

from finetune_api.deepspeed import DeepSpeedConfig, read_deepspeed_config
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.storage.open import open_input

LARGEST = 2**20
"""Bytes of a DeepSpeed file; real ones have one thousand."""


def deepspeed_here(spec: FineTuneJobSpec) -> tuple[DeepSpeedConfig | None, tuple[str, ...]]:
    """What a job's DeepSpeed file holds, None where it cannot be read from here, and remarks about that.

    `deepspeed.config_path` is any path that `open_input` takes. Raises FineTuneError (InvalidSpec) for a file
    that is no DeepSpeed configuration, or asks for what nothing here is equivalent to.
    """
    if spec.deepspeed is None:
        return None, ()
    path = spec.deepspeed.config_path
    try:
        text = _text(path)
    except FineTuneError as error:
        # Of a file that came with LLMForge's own examples its name is all that people have.
        is_absent = error.failure_class is FailureClass.INVALID_DATA
        return None, () if is_absent else (f"spec.deepspeed: was not read; {error.problems[0]}",)
    return _config(path, text), ()


def _text(path: str) -> bytes:
    with open_input(path) as stream:
        return stream.read(LARGEST + 1)


def _config(path: str, text: bytes) -> DeepSpeedConfig:
    try:
        if len(text) > LARGEST:
            raise ValueError(f"is no DeepSpeed configuration: it has more than {LARGEST} bytes")
        return read_deepspeed_config(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"spec.deepspeed: {path}: is not UTF-8 text"
        ) from error
    except ValueError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.deepspeed: {path}: {error}") from error
