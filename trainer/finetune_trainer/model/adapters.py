"""LoRA adapters by PEFT: new ones from the spec's fields, and existing ones to begin from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import peft
import torch
from peft.tuners.lora.config import LoraRuntimeConfig
from peft.tuners.lora.layer import LoraLayer
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.lora import ALL_LINEAR, LoraConfig
from finetune_trainer.model.contents import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune_trainer.model.files import check_readable
from finetune_trainer.model.reach import unreached

SHOWN_MODULES = 12

_PEFT_REMARKS: dict[str, str | None] = {
    "fan_in_fan_out is set to True": "fan_in_fan_out: this model's layers are not stored so; taken as false",
    "fan_in_fan_out is set to False": None,
    "`lora_bias=True` was passed": (
        "lora_bias: this model's layers have no bias, so that finetune merge cannot merge the adapter"
    ),
    "no tied modules were found": "ensure_weight_tying has no effect: this model does not tie its embeddings",
    "no tied modules are added": (
        "ensure_weight_tying has no effect: neither modules_to_save nor target_modules names the embeddings"
    ),
    "ties embeddings in full": (
        "modules_to_save: this model ties embed_tokens to lm_head; in full they are trained apart, unless"
        " ensure_weight_tying is true"
    ),
    "`tie_word_embeddings=True`": None,
    "keys did not match any targeted module": None,
    "You have passed exclude_modules": None,
    "no parameter was matched": None,
    "path_initial_model_for_weight_conversion": None,
}
"""For a part of a remark of PEFT's, what it means for `lora_config`; None where another check says it."""


def _peft_config(lora: LoraConfig) -> peft.LoraConfig:
    """PEFT's configuration with the spec's fields.

    `target_modules` defaults to `all-linear`; the other fields default as in PEFT.
    Raises FineTuneError (InvalidSpec) with PEFT's message when PEFT refuses a combination of fields.
    """
    fields = lora.model_dump(exclude_unset=True, exclude_none=True)
    if "runtime_config" in fields:  # an API server fills its default in
        fields["runtime_config"] = LoraRuntimeConfig(**fields["runtime_config"])
    try:
        return peft.LoraConfig(**{"target_modules": ALL_LINEAR, **fields, "task_type": "CAUSAL_LM"})
    except (ValueError, TypeError, ImportError) as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.lora_config: {error}") from error


def with_adapters(model: PreTrainedModel, lora: LoraConfig, *, on_meta: bool = False) -> peft.PeftModel:
    """Adds new adapters to the model; with `on_meta`, without allocating their weights.

    Parts of the model that text does not reach get none.
    Raises FineTuneError (InvalidSpec) with PEFT's message when PEFT refuses the configuration.
    """
    config = _peft_config(lora)
    config.exclude_modules = _excluded(lora.exclude_modules, unreached(model))
    try:
        adapted = cast("peft.PeftModel", peft.get_peft_model(model, config, low_cpu_mem_usage=on_meta))
    except (ValueError, TypeError, KeyError, IndexError, ImportError, re.error) as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.lora_config: {error}") from error
    if not lora.use_dora:
        _take_inputs_as_they_are(adapted)
    return adapted


def _take_inputs_as_they_are(model: peft.PeftModel) -> None:
    """Has adapters compute with their inputs in the precision that these have.

    PEFT makes them fp32 as the adapters' weights are. In bf16 that changes nothing, since autocast takes it
    back, but keeps a copy of each layer's input for the backward pass. DoRA computes its norms in fp32.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


@contextmanager
def peft_remarks(lora: LoraConfig, remarks: list[str]) -> Iterator[None]:
    """Adds to `remarks` what PEFT warns about in the `with` block, in our words where there are some."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning | RuntimeWarning):
            remark = _in_our_words(lora, str(warning.message))
            if remark is not None and remark not in remarks:
                remarks.append(remark)


def _in_our_words(lora: LoraConfig, message: str) -> str | None:
    if "a tied layer is part of the adapter" in message and lora.modules_to_save:
        message = "ties embeddings in full"
    for part, words in _PEFT_REMARKS.items():
        if part in message:
            return words and f"spec.lora_config.{words}"
    return f"spec.lora_config: PEFT remarks: {' '.join(message.split())[:300]}"


_READ_WHOLE_WEIGHTS = ("olora", "pissa", "mica")
"""Initialisations that look at the whole of the weights that they adapt."""


def check_shardable(lora: LoraConfig) -> None:
    """Checks that the adapters can be made by ranks that hold parts of the weights only.

    Raises FineTuneError (InvalidSpec) with a problem for each field that needs whole weights.
    """
    whole = {
        "use_dora": lora.use_dora,
        f"init_lora_weights: {lora.init_lora_weights}": lora.init_lora_weights in _READ_WHOLE_WEIGHTS,
        "trainable_token_indices": bool(lora.trainable_token_indices),
        "layer_replication": bool(lora.layer_replication),
        "target_parameters": bool(lora.target_parameters),
    }
    problems = [
        f"spec.lora_config.{field} needs whole weights, and with fsdp each device holds a part; leave it out,"
        " or set spec.parallelism to ddp"
        for field, needed in whole.items()
        if needed
    ]
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)


def check_targets(lora: LoraConfig, model: PreTrainedModel, *, tied: bool) -> list[str]:
    """Checks that the modules named in `target_modules` and `modules_to_save` exist.

    PEFT itself complains only when no module of `target_modules` exists, and never about `modules_to_save`.
    `tied` says whether the model ties its embeddings. Returns a warning for each name that does not exist.
    Raises FineTuneError (InvalidSpec), with the names that do exist, when none of a field does.
    """
    targets = lora.target_modules
    remarks = _check_names("modules_to_save", lora.modules_to_save or [], model)
    excluded = lora.exclude_modules
    if isinstance(excluded, str):
        _check_expression("exclude_modules", excluded, model)
    else:
        remarks += _check_names("exclude_modules", excluded or [], model, instead="it excludes nothing")
    remarks += _check_parameters(lora.target_parameters or [], model)
    remarks += _check_layers(lora, model)
    _check_tokens(lora, model)
    if isinstance(targets, str):
        if targets != ALL_LINEAR:
            _check_expression("target_modules", targets, model)
        return remarks
    remarks += _check_names("target_modules", targets, model)
    if tied and {"embed_tokens", "lm_head"} & set(targets):
        remarks.append(
            "spec.lora_config.target_modules: this model ties embed_tokens to lm_head; finetune merge unties"
            " them, and the model grows"
        )
    return remarks


def check_patterns(lora: LoraConfig, model: peft.PeftModel) -> list[str]:
    """Checks that the keys of `rank_pattern` and `alpha_pattern` name modules that have an adapter.

    `model` has the adapters. Returns a warning for each key that names none. Raises FineTuneError
    (InvalidSpec) when none of a field's does.
    """
    tuner = cast("peft.LoraModel", model.base_model)
    adapted = [*tuner.targeted_module_names, *tuner.targeted_parameter_names]
    remarks = []
    for field in ("rank_pattern", "alpha_pattern"):
        keys = list(getattr(lora, field))
        absent = [key for key in keys if not any(_names(key, name) for name in adapted)]
        ends = sorted({name.rpartition(".")[2] for name in adapted})
        what = f"no module with an adapter is called {', '.join(absent)}; adapters are on {', '.join(ends)}"
        if keys and len(absent) == len(keys):
            raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.lora_config.{field}: {what}")
        if absent:
            remarks.append(f"spec.lora_config.{field}: {what}")
    return remarks


def _names(key: str, name: str) -> bool:
    """Whether a key of a pattern names a module, by PEFT's rule."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _excluded(excluded: str | list[str] | None, unreached_parts: list[str]) -> str | list[str] | None:
    """PEFT's `exclude_modules` that also leaves out these parts: a regular expression for the whole name."""
    if not unreached_parts:
        return excluded
    parts = "|".join(re.escape(part) for part in unreached_parts)
    expressions = [rf"(?:{parts})(?:\..*)?"]
    if isinstance(excluded, str):
        expressions.append(f"(?:{excluded})")
    elif excluded:
        expressions.append(rf"(?:.*\.)?(?:{'|'.join(re.escape(name) for name in excluded)})")
    return "|".join(expressions)


def _check_names(
    field: str, wanted: list[str], model: PreTrainedModel, *, instead: str = "the others are trained"
) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    absent = [each for each in wanted if not _is_last_part(each, names)]
    if wanted and len(absent) == len(wanted):
        what = f"no module is called {', '.join(absent)}; {_existing(model)}"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.lora_config.{field}: {what}")
    return [f"spec.lora_config.{field}: no module is called {each}; {instead}" for each in absent]


def _check_parameters(wanted: list[str], model: PreTrainedModel) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    absent = [each for each in wanted if not _is_last_part(each, names)]
    problems = [f"spec.lora_config.target_parameters: no parameter is called {each}" for each in absent]
    if wanted and len(absent) == len(wanted):
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return problems


def _is_last_part(wanted: str, names: list[str]) -> bool:
    return any(name == wanted or name.endswith(f".{wanted}") for name in names)


def _check_layers(lora: LoraConfig, model: PreTrainedModel) -> list[str]:
    layers = model.config.get_text_config().num_hidden_layers
    wanted = lora.layers_to_transform
    indices = [wanted] if isinstance(wanted, int) else wanted or []
    absent = [str(index) for index in indices if not 0 <= index < layers]
    if not absent or lora.layer_replication:
        return []
    what = (
        f"spec.lora_config.layers_to_transform: this model has no layer {', '.join(absent)};"
        f" its layers are 0 to {layers - 1}"
    )
    if len(absent) == len(indices):
        raise FineTuneError(FailureClass.INVALID_SPEC, what)
    return [what]


def _check_tokens(lora: LoraConfig, model: PreTrainedModel) -> None:
    where = "spec.lora_config.trainable_token_indices"
    wanted = lora.trainable_token_indices
    modules = dict(model.named_modules())
    embeddings = {"": model.get_input_embeddings()}
    if isinstance(wanted, dict):
        for name in wanted:
            found = next((each for full, each in modules.items() if _is_last_part(name, [full])), None)
            if found is None:
                raise FineTuneError(
                    FailureClass.INVALID_SPEC,
                    f"{where}: no module is called {name}; {_existing(model)}",
                )
            embeddings[name] = found
    for name, indices in (wanted if isinstance(wanted, dict) else {"": wanted or []}).items():
        known = len(cast("torch.nn.Embedding | torch.nn.Linear", embeddings[name]).weight)
        absent = [str(index) for index in indices if not 0 <= index < known]
        if absent:
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"{where}: there is no token {', '.join(absent)}; this model has tokens 0 to {known - 1}",
            )


def _check_expression(field: str, expression: str, model: PreTrainedModel) -> None:
    where = f"spec.lora_config.{field}"
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{where}: {expression!r} is not a regular expression: {error}"
        ) from error
    if not any(pattern.fullmatch(name) for name, _ in model.named_modules()):
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{where}: {expression!r} matches no module; {_existing(model)}"
        )


def _existing(model: PreTrainedModel) -> str:
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    names = sorted(
        {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)}
    )
    shown = ", ".join(names[:SHOWN_MODULES]) + (", ..." if len(names) > SHOWN_MODULES else "")
    return f"this model has {shown}"


class _Scale(BaseModel):
    """The fields of PEFT's adapter_config.json that, besides `r`, scale an adapter; with PEFT's defaults."""

    lora_alpha: int | float = 8
    alpha_pattern: dict[str, int | float] = {}
    use_rslora: bool = False


_WHOLE_ONLY = ", and spec.lora_config takes whole numbers only"


def _whole(value: object) -> bool:
    numbers = value.values() if isinstance(value, dict) else [value]
    return not any(isinstance(number, float) and not number.is_integer() for number in numbers)


def check_adapter(model: peft.PeftModel, adapter: Path) -> None:
    """Checks that the adapter in this directory fits the model's adapters.

    Only names and shapes are read, so the model may be on the meta device. Raises FineTuneError:
    ModelNotFound when the directory holds no adapter, InvalidSpec when it does not fit.
    """
    where = "spec.initial_adapter_model_ckpt_path"
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (adapter / file).is_file():
            raise FineTuneError(
                FailureClass.MODEL_NOT_FOUND,
                f"{where}: {adapter} holds no {file}; give an adapter's directory",
            )
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as file:
        names = file.keys()  # the file itself cannot be iterated over
        there = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    for name in sorted(wanted.keys() - there.keys()):
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{where}: the adapter has no {name}, which spec.lora_config asks for"
        )
    for name in sorted(there.keys() - wanted.keys()):
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{where}: the adapter has {name}, which spec.lora_config does not ask for",
        )
    for name in sorted(name for name in wanted if wanted[name] != there[name]):
        shapes = (
            f"is of shape {there[name]} in the adapter, and spec.lora_config makes it {wanted[name]}; r must"
            " be the adapter's"
        )
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: {name} {shapes}")
    ours = model.peft_config["default"]
    theirs = _Scale.model_validate_json((adapter / ADAPTER_CONFIG).read_text())
    for field, value in theirs:
        if getattr(ours, field) != value:
            what = (
                f"the adapter was trained with {field} {value}, and spec.lora_config has"
                f" {getattr(ours, field)}; they must be equal{'' if _whole(value) else _WHOLE_ONLY}"
            )
            raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: {what}")


def load_adapter(model: peft.PeftModel, adapter: Path) -> None:
    """Loads the adapter's weights into the model. `check_adapter` checks beforehand whether they fit."""
    peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(adapter), device="cpu"))


class AdapterConfig(BaseModel):
    """The fields of PEFT's adapter_config.json that say what the adapter belongs to."""

    peft_type: str
    base_model_name_or_path: str
    revision: str | None = None

    @property
    def base(self) -> str:
        """The base model as a source of models: of one on the hub with its revision."""
        return (
            f"{self.base_model_name_or_path}@{self.revision}"
            if self.revision
            else self.base_model_name_or_path
        )


def read_adapter_config(text: str, where: str) -> AdapterConfig:
    """Reads the text of an adapter_config.json, whose path is `where`.

    Raises FineTuneError (InvalidSpec) when it does not name a base model.
    """
    try:
        return AdapterConfig.model_validate_json(text)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, details['loc']))}: {details['msg']}".removeprefix(": ")
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: {what}") from error


def with_saved_adapter(model: PreTrainedModel, adapter: Path, where: str) -> peft.PeftModel:
    """The model with the adapter in a directory, which people know as `where`.

    Raises FineTuneError: InvalidSpec when it is an adapter of another model, ModelNotFound when a file is
    damaged.
    """
    with warnings.catch_warnings():
        # PEFT only warns when weights are missing, and leaves them random.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return peft.PeftModel.from_pretrained(model, str(adapter))
        except (ValueError, RuntimeError, KeyError, TypeError, UserWarning, SafetensorError) as error:
            check_readable(adapter, where)
            reason = " ".join(str(error).split())[:500]
            raise FineTuneError(
                FailureClass.INVALID_SPEC, f"{where}: the adapter does not fit its base model: {reason}"
            ) from error
