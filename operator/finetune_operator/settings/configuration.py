"""The operator's configuration: environment variables over a YAML file. Every mistake is reported at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from finetune_api.cluster import Quantity, Reference
from finetune_api.devices import NAMES, NO_DEVICE, Devices
from finetune_api.explain import explain
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import Integer, StoragePath
from finetune_api.names import LabelKey
from finetune_api.yaml_text import parse
from finetune_operator.settings.accelerator_profiles import (
    AcceleratorProfile,
    AcceleratorType,
    effective_profiles,
)

PREFIX = "FINETUNE_OPERATOR_"
"""What the names of the environment variables begin with."""
FILE = f"{PREFIX}CONFIG"
"""The environment variable that names the YAML file."""

_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)"
)
"""Variables that Kubernetes sets for Services called finetune-operator...: they are not ours."""
JsonObject = dict[str, JsonValue]

_UNKNOWN_TYPE = "accelerator"
_ROOT = "\0"
"""Stands for the configuration as a whole in the paths of errors; it is removed before they are shown."""


def _namespace(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise PydanticCustomError(
            "name", "must be a namespace: at most 63 lower-case letters, digits and `-`"
        )
    return name


def _image(name: str) -> str:
    if not re.fullmatch(r"[^\s]+", name):
        raise PydanticCustomError(
            "image", "must be the name of an image, such as registry.example.com/trainer:1.0"
        )
    return name


def _version(text: str) -> str:
    if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\S*", text):
        raise PydanticCustomError("version", "must be a version, such as 2.60.0")
    return text


def _listed(value: object) -> object:
    """Turns `a,b`, as environment variables have it, into a list."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class PodResources(BaseModel):
    """What a pod asks for."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    cpu: Quantity
    """Processors, requested."""
    memory: Quantity
    """Memory, requested and at most."""


class PodSecurityContext(BaseModel):
    """As whom the pods of jobs run, spelt as in a pod. What is left out is the cluster's to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    runAsUser: Annotated[Integer, Field(ge=1, lt=2**31)] | None = None  # noqa: N815 - spelt as in a pod
    """The user, who is never root."""
    runAsGroup: Annotated[Integer, Field(ge=0, lt=2**31)] | None = None  # noqa: N815
    """The user's group."""
    fsGroup: Annotated[Integer, Field(ge=0, lt=2**31)] | None = None  # noqa: N815
    """The group to which volumes belong."""
    supplementalGroups: list[Annotated[Integer, Field(ge=0, lt=2**31)]] | None = None  # noqa: N815
    """Further groups of the user, such as that of a shared file system's directory."""


class NetworkPolicyPeer(BaseModel):
    """Pods or addresses, spelt as in a NetworkPolicy."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    podSelector: JsonObject | None = None  # noqa: N815 - spelt as in a NetworkPolicy
    """Labels of pods; without a namespaceSelector, of the job's own namespace."""
    namespaceSelector: JsonObject | None = None  # noqa: N815
    """Labels of their namespaces; `{}` is all."""
    ipBlock: JsonObject | None = None  # noqa: N815
    """Addresses, `{cidr: 10.0.0.0/8}`; alone."""

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if self.ipBlock is None and self.podSelector is None and self.namespaceSelector is None:
            raise PydanticCustomError("peer", "must have a podSelector, a namespaceSelector or an ipBlock")
        if self.ipBlock is not None and (self.podSelector is not None or self.namespaceSelector is not None):
            raise PydanticCustomError("peer", "must have an ipBlock, or else selectors, not both")
        return self


class Configuration(BaseSettings):
    """The settings of whoever installs the operator."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    trainer_image: Annotated[str, AfterValidator(_image)]
    """Image of the pods that train, where the job names none."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When that image is pulled, where the job does not say."""
    image_pull_secrets: list[Reference] = []
    """Secrets, of each job's own namespace, with which images are pulled where the job names none:
    `[{name: registry}]`."""
    ray_version: Annotated[str, AfterValidator(_version)] = "2.60.0"
    """The version of Ray in that image."""
    storage: StoragePath | None = None
    """Where runs go of jobs without `spec.storage`; without it, every job must have one. As in a job:
    `s3://`, `gs://`, `pvc://CLAIM/path`."""
    accelerators: dict[AcceleratorType, AcceleratorProfile | None] = {}
    """Accelerator profiles by type, over those below. A type's profile replaces the default one whole, `null`
    removes it."""
    accelerator_names: dict[Annotated[str, Field(min_length=1, max_length=256)], AcceleratorType | None] = {}
    """Other names of types, over those below: of machines (`g5.*`) and longer spellings. `*` stands for
    anything, `null` removes a name."""
    default_accelerator: str = NO_DEVICE
    """The type for jobs that name none; `CPU` is no device."""
    head: PodResources = PodResources(cpu=1, memory="8Gi")
    """The pod of a job that coordinates, and does not train."""
    prepare: PodResources | None = None
    """The pod of a job that prepares it before a cluster is asked for; as large as `head`, if left out."""
    submitter: PodResources = PodResources(cpu="100m", memory="1Gi")
    """The pod of a job that hands the program to Ray, and follows its log."""
    pod_security_context: PodSecurityContext = PodSecurityContext(
        runAsUser=1000, runAsGroup=1000, fsGroup=1000
    )
    """As whom the pods of jobs run, spelt as in a pod. What is left out the cluster chooses: `{}` where an
    admission policy assigns users, as OpenShift's `restricted-v2` does."""
    ray_job_labels: list[LabelKey] = [
        "kueue.x-k8s.io/queue-name",
        "kueue.x-k8s.io/priority-class",
        "kueue.x-k8s.io/max-exec-time-seconds",
        "ray.io/priority-class-name",
        "ray.io/gang-scheduling-enabled",
        "volcano.sh/queue-name",
        "volcano.sh/network-topology-mode",
        "volcano.sh/network-topology-highest-tier-allowed",
        "kai.scheduler/queue",
        "yunikorn.apache.org/app-id",
        "yunikorn.apache.org/queue",
    ]
    """Labels of a FineTuneJob that its RayJobs get too: those of queues and schedulers."""
    ray_job_annotations: list[LabelKey] = ["provreq.kueue.x-k8s.io/maxRunDurationSeconds"]
    """Annotations of a FineTuneJob that its RayJobs get too."""
    watch_namespaces: Annotated[
        list[Annotated[str, AfterValidator(_namespace)]], NoDecode, BeforeValidator(_listed)
    ] = []
    """Namespaces whose jobs are run; all, if empty. `a,b` is a list as well."""
    network_policies: bool = True
    """Whether each job gets a NetworkPolicy that closes its pods to all others, but for Ray's dashboard,
    which asks for the job's token."""
    dashboard_clients: list[NetworkPolicyPeer] = []
    """Who may reach the dashboard then, besides the job's own pods; anyone who has the token, if empty.
    KubeRay must be among them."""
    workers: Annotated[Integer, Field(ge=1, le=1000)] = 32
    """Jobs that are reconciled at the same time."""
    resync_seconds: Annotated[Integer, Field(ge=1, le=86400)] = 60
    """Seconds after which a job is reconciled again when nothing seems to happen."""
    listen_port: Annotated[Integer, Field(ge=1, le=65535)] = 8080
    """Port of health checks and metrics."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe messages that are logged."""
    log_format: Literal["json", "text"] = "json"
    """A JSON object a line, or text."""

    @field_validator("accelerator_names")
    @classmethod
    def _name_what_there_is(cls, names: dict[str, str | None], info: ValidationInfo) -> dict[str, str | None]:
        if "accelerators" not in info.data:
            return names
        known = effective_profiles(info.data["accelerators"])
        wrong = [f"{name} is of {each}" for name, each in names.items() if each not in (None, *known)]
        if wrong:
            raise PydanticCustomError(
                _UNKNOWN_TYPE,
                "must be names of {types}; {wrong}",
                {"types": ", ".join(known), "wrong": ", ".join(wrong)},
            )
        return names

    @field_validator("default_accelerator")
    @classmethod
    def _is_known(cls, name: str, info: ValidationInfo) -> str:
        known = effective_profiles(info.data["accelerators"]) if "accelerators" in info.data else None
        if known is not None and name not in known:
            raise PydanticCustomError(_UNKNOWN_TYPE, "must be one of {types}", {"types": ", ".join(known)})
        return name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments alone: `load_configuration` reads environment and file, for better messages."""
        return (init_settings,)

    @cached_property
    def profiles(self) -> dict[str, AcceleratorProfile]:
        """The accelerator profiles by type: the defaults with the configuration's own laid over them."""
        return effective_profiles(self.accelerators)

    @cached_property
    def devices(self) -> Devices:
        """The types of these profiles, and what else they are called."""
        names = {
            name: each for name, each in {**NAMES, **self.accelerator_names}.items() if each in self.profiles
        }
        return Devices(types=tuple(self.profiles), names=names)


def load_configuration(environ: Mapping[str, str] | None = None) -> Configuration:
    """The configuration from environment variables (default: `os.environ`) over the file that they name.

    That file is FINETUNE_OPERATOR_CONFIG's; without it there is none.

    Raises FineTuneError (InvalidSpec) with every mistake, each as `source: field: what is wrong`.
    """
    sources = _Sources(os.environ if environ is None else environ)
    problems = sources.problems
    document = sources.document()
    try:
        configuration = Configuration.model_validate(document)
    except ValidationError as error:
        lines = explain(error, Configuration, document, _ROOT)
        details = error.errors(include_url=False)
        found = [f"{sources.of(detail)}: {_plain(line)}" for line, detail in zip(lines, details, strict=True)]
        # A file that could not be read might have said what is missing.
        unsure = () if sources.file_is_read else ("missing", _UNKNOWN_TYPE)
        problems += [
            line for line, detail in zip(found, details, strict=True) if detail["type"] not in unsure
        ]
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return configuration


class _Sources:
    """What the environment and the file set, and which of them set what."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        ours = {name: text for name, text in environ.items() if name.startswith(PREFIX) and name != FILE}
        known = list(_variables())
        self.problems = [
            f"{name}: is not a variable of the operator{_nearest(name, known)}"
            for name in ours
            if name not in known and not _SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
        ]
        self._variables = {name: text for name, text in ours.items() if name in known}
        self._from_environment = _Environment(self._variables)()
        self._path = environ.get(FILE)
        self._from_file: dict[str, JsonValue] = {}
        self.file_is_read = True
        try:
            if self._path is not None:
                self._from_file = _read(self._path)
        except FineTuneError as error:
            self.file_is_read = False
            self.problems += error.problems

    def document(self) -> dict[str, JsonValue]:
        """The fields of the file with those of the environment over them.

        Of a pod's resources each is replaced by itself, all other fields are replaced whole.
        """
        merged: dict[str, JsonValue] = {}
        for layer in (self._from_file, self._from_environment):
            for key, value in layer.items():
                below = merged.get(key, _pod_default(key))
                merged[key] = (
                    {**below, **value}
                    if key in _POD_FIELDS and isinstance(below, dict) and isinstance(value, dict)
                    else value
                )
        return merged

    def of(self, detail: ErrorDetails) -> str:
        """Where the value of an error is set: the name of the variable, or the path of the file.

        What is missing belongs into the file, if there is one.
        """
        path = [str(part) for part in detail["loc"]]
        for length in range(len(path), 0, -1):
            if _holds(self._from_environment, path[:length]):
                name = f"{PREFIX}{'__'.join(path[:2])}".upper()
                return name if name in self._variables else f"{PREFIX}{path[0]}".upper()
            if self._path is not None and _holds(self._from_file, path[:length]):
                return self._path
        return self._path if self._path is not None else f"{PREFIX}{path[0]}".upper()


class _Environment(EnvSettingsSource):
    """These environment variables, and not those of the process."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(Configuration)
        self.env_vars = {name.lower(): text for name, text in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ANN401 - as overridden
        """The value of a JSON text; any other text stays one, which validation reports with all mistakes."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


_POD_FIELDS = {
    name: field.default
    for name, field in Configuration.model_fields.items()
    if isinstance(field.default, PodResources)
}


def _pod_default(field: str) -> JsonValue:
    return _POD_FIELDS[field].model_dump() if field in _POD_FIELDS else None


def _variables() -> Iterator[str]:
    """The names of all environment variables that set something."""
    yield FILE
    for name in Configuration.model_fields:
        yield f"{PREFIX}{name}".upper()
        if name in _POD_FIELDS:
            yield from (f"{PREFIX}{name}__{part}".upper() for part in PodResources.model_fields)


def _nearest(name: str, known: list[str]) -> str:
    if name.startswith(f"{PREFIX}ACCELERATORS__"):
        return f"; give all profiles as JSON in {PREFIX}ACCELERATORS, or in the file"
    meant = difflib.get_close_matches(
        name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], n=1, cutoff=0.5
    )
    return f"; did you mean {PREFIX}{meant[0]}?" if meant else ""


def _read(path: str) -> dict[str, JsonValue]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{FILE}: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: is not UTF-8 text") from error
    document, _ = parse(text, path)
    return document


def _holds(layer: Mapping[str, JsonValue], path: list[str]) -> bool:
    """Whether a layer sets a value at a path; a text or list sets all that is below it."""
    current: JsonValue = dict(layer)
    for part in path:
        if not isinstance(current, dict):
            return True
        if part not in current:
            return False
        current = current[part]
    return True


def _plain(line: str) -> str:
    return line.replace(f"{_ROOT}.", "")
