"""What a server needs to know of a checkpoint, in the terms that vLLM, KServe and Ray Serve share.

All three serve by vLLM. Sources: vLLM's `vllm/config/lora.py` for ranks, `vllm/lora/peft_helper.py` for what
an adapter may have.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import scheme
from finetune_api.manifest import read_spec
from finetune_api.paths import parent
from finetune_api.spec import FineTuneJobSpec
from finetune_api.yaml_text import parse
from finetune_trainer.checkpoint.chosen import chosen
from finetune_trainer.model.contents import ADAPTER_CONFIG
from finetune_trainer.storage.open import Storage, open_storage
from finetune_trainer.storage.run_directory import JOB

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the greatest rank, but for 1."""
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
TEMPLATE = "chat_template.jinja"
QUANTIZATION = "quantization_config.json"

_IN_A_CLUSTER = ("pvc", "s3", "gs", "hf")
_LABEL = r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?"
"""Names of services: what KServe and KubeRay add to them must still fit into 63 characters."""
_NO_ADAPTERS_OF = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
_PLAIN_INITIALISATIONS = (True, False, "gaussian")
"""The others begin by changing the base, which a server does not do."""


class _Adapter(BaseModel):
    """The fields of PEFT's adapter_config.json that a server needs."""

    model_config = ConfigDict(extra="allow")

    base_model_name_or_path: str
    r: int
    target_modules: list[str] | str | None = None
    bias: str = "none"
    init_lora_weights: bool | str = True


@dataclass(frozen=True)
class Served:
    """A checkpoint, and how it is to be served."""

    name: str
    """What requests call it."""
    path: str
    """Where servers find it: a path, `s3://`, `gs://`, `pvc://` or `hf://`."""
    base: str | None
    """The base model of an adapter; None for a whole model."""
    max_rank: int | None
    """What vLLM is to allow for an adapter."""
    dtype: str | None
    """The precision, in vLLM's words; None leaves it to the model."""
    context_length: int | None
    """Tokens of the longest sequence that was trained on, where the job says so."""
    own_format: bool
    """Whether the job has a format of conversations of its own, in place of the base model's."""
    remarks: tuple[str, ...] = ()

    @property
    def base_on_a_hub(self) -> bool:
        """Whether the adapter's base model is found by its name anywhere."""
        return self.base is not None and not scheme(self.base) and not self.base.startswith(("/", "."))


def served(
    run: str, *, checkpoint: str | None = None, name: str | None = None, at: str | None = None
) -> Served:
    """Reads what a server needs to know of a checkpoint, which `run` and `checkpoint` name (see `chosen`).

    `at` is where servers find it, if it is somewhere else. `name` defaults to the job's custom_model_tag,
    then to its name, then to that of the directory.

    Raises FineTuneError: as `chosen` does; InvalidSpec for an adapter that vLLM does not load, or would load
    as another model, with what to do instead.
    """
    source = chosen(run, checkpoint)
    spec, job_name = _job(source)
    adapter = _adapter(source)
    remarks = []
    if adapter is not None and source.read_text(QUANTIZATION) is not None:
        remarks.append(
            "the adapter was trained on a base in 4 bits and is served on the full one, on which its loss is"
            " another one; a merged model has the loss that training showed"
        )
    tag = None if spec is None else spec.custom_model_tag
    found = name or tag or job_name or PurePosixPath(source.path.partition("?")[0]).name
    return Served(
        name=found,
        path=at or source.path,
        base=None if adapter is None else adapter.base_model_name_or_path,
        max_rank=None if adapter is None else next(rank for rank in RANKS if rank >= adapter.r),
        dtype=None if spec is None else DTYPES.get(spec.dtype),
        context_length=None if spec is None else spec.context_length,
        own_format=spec is not None
        and spec.generation_config is not None
        and source.read_text(TEMPLATE) is not None,
        remarks=tuple(remarks),
    )


def service_name(model: Served) -> str:
    """The name of a Kubernetes object for a model, made of the model's.

    Raises FineTuneError (InvalidSpec) when none can be made of it.
    """
    name = re.sub(r"[^a-z0-9]+", "-", model.name.lower()).strip("-")[:50].strip("-")
    if not re.fullmatch(_LABEL, name):
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{model.name}: no name of a service can be made of it; give one with --name, of lower-case"
            " letters, digits and `-`",
        )
    return name


def check_seen_by_a_cluster(model: Served, *schemes: str) -> None:
    """Raises FineTuneError (InvalidSpec) unless the checkpoint's path has one of these schemes."""
    if scheme(model.path) in schemes:
        return
    if not scheme(model.path) or scheme(model.path) == "file":
        what = "is on this machine, where no cluster sees it"
    elif scheme(model.path) in _IN_A_CLUSTER:
        what = "cannot be served from there"
    else:
        what = "is no address of a model"
    forms = {
        "hf": "hf://OWNER/NAME",
        "pvc": "pvc://CLAIM/path",
        "s3": "s3://BUCKET/path",
        "gs": "gs://BUCKET/path",
    }
    raise FineTuneError(
        FailureClass.INVALID_SPEC,
        f"{model.path}: {what}; upload it, with `finetune push` or a copy, and say with --at where it is:"
        f" {', '.join(forms[each] for each in schemes)}",
    )


def must_be_merged(where: str, why: str) -> FineTuneError:
    """The error for an adapter that only a merged model can take the place of."""
    return FineTuneError(
        FailureClass.INVALID_SPEC,
        f"{where}: {why}; merge it, `finetune merge CHECKPOINT OUT`, and serve OUT",
    )


def _adapter(source: Storage) -> _Adapter | None:
    text = source.read_text(ADAPTER_CONFIG)
    if text is None:
        return None
    where = f"{source.path}/{ADAPTER_CONFIG}"
    try:
        adapter = _Adapter.model_validate_json(text)
        fields: dict[str, JsonValue] = json.loads(text)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, details['loc']))}: {details['msg']}".removeprefix(": ")
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: {what}") from error
    unknown = [
        name
        for name in (
            "use_dora",
            "modules_to_save",
            "lora_bias",
            "trainable_token_indices",
            "target_parameters",
            "layer_replication",
            "rank_pattern",
            "alpha_pattern",
            "alora_invocation_tokens",
            "use_bdlora",
            "velora_config",
        )
        if fields.get(name)
    ]
    if adapter.bias != "none":
        unknown.append("bias")
    if adapter.init_lora_weights not in _PLAIN_INITIALISATIONS:
        unknown.append("init_lora_weights")
    if isinstance(adapter.target_modules, list) and set(adapter.target_modules) & set(_NO_ADAPTERS_OF):
        unknown.append("target_modules")
    if unknown:
        shown = ", ".join(f"{name}: {json.dumps(fields.get(name))}"[:80] for name in unknown)
        raise must_be_merged(where, f"vLLM does not load this adapter as it was trained ({shown})")
    if adapter.r > RANKS[-1]:
        raise must_be_merged(
            where, f"vLLM loads adapters of rank {RANKS[-1]} at most, this one has {adapter.r}"
        )
    return adapter


def _job(source: Storage) -> tuple[FineTuneJobSpec | None, str | None]:
    """The job that a checkpoint is of, and its name; None for a directory that is in no run."""
    name = PurePosixPath(source.path.partition("?")[0]).name
    above = parent(source.path, name)
    text = open_storage(above).read_text(JOB) if above != source.path else None
    if text is None:
        return None, None
    try:
        document, _ = parse(text, f"{above}/{JOB}")
        spec, metadata = document["spec"], document["metadata"]
        assert isinstance(spec, dict)
        assert isinstance(metadata, dict)
        return read_spec(spec), str(metadata["name"])
    except (FineTuneError, KeyError, AssertionError) as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{above}/{JOB}: is not what a run writes; copy the checkpoint out of the run, and serve the"
            " copy",
        ) from error
