"""Accelerator profiles: to which nodes the workers of a type go, and what they ask for there.

The default table fits nodes that GKE, Karpenter on AWS, EKS Auto Mode, AKS or GPU Feature Discovery labels:
their labels are alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from finetune_api.cluster import Quantity
from finetune_api.devices import MEMORY, NO_DEVICE
from finetune_api.fields import Integer, JsonObject
from finetune_api.names import WORD, Form, LabelKey, LabelValue, ObjectName, ResourceName

AcceleratorType = Annotated[
    str,
    AfterValidator(Form(WORD, "must be a type's name, letters, digits and `-`, such as A100-80G").check),
]
NodeLabels = Annotated[dict[LabelKey, Annotated[list[LabelValue], Field(min_length=1)]], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Toleration(_Part):
    """A taint of nodes that workers tolerate, spelt as in a pod."""

    key: LabelKey | None = None
    """The taint's key; default: any key."""
    operator: Literal["Exists", "Equal"] | None = None
    """`Exists` tolerates any value; default: `Equal`."""
    value: LabelValue | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; default: any effect."""
    tolerationSeconds: Integer | None = None  # noqa: N815 - spelt as in a pod
    """Seconds that a pod stays where a NoExecute taint appears; default: for ever."""

    @model_validator(mode="after")
    def _is_legal(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise PydanticCustomError(
                "toleration", "must have a key, or the operator Exists, which then means every taint"
            )
        if self.operator == "Exists" and self.value:
            raise PydanticCustomError("toleration", "must have no value when the operator is Exists")
        if self.tolerationSeconds is not None and self.effect != "NoExecute":
            raise PydanticCustomError(
                "toleration", "must have the effect NoExecute when it has tolerationSeconds"
            )
        return self


class AcceleratorProfile(_Part):
    """How workers of a type become pods. A worker has one device, and amounts are for one worker."""

    resource: ResourceName | None = None
    """The extended resource that is one device, `nvidia.com/gpu`, which Ray calls `GPU`; left out for workers
    without a device."""
    resource_claim_template: ObjectName | None = None
    """In place of `resource`, where devices are claimed (dynamic resource allocation): the
    ResourceClaimTemplate of one device, in the namespace of each job."""
    node_labels: list[NodeLabels] = []
    """Alternatives. A node must have every label of one of them, each with one of the values in its list."""
    node_selector: dict[LabelKey, LabelValue] = {}
    """Labels that a node must have in addition."""
    tolerations: list[Toleration] = []
    """Taints of nodes that workers tolerate, spelt as in a pod."""
    cpu: Quantity
    """Processors of a worker, requested."""
    memory: Quantity
    """Memory of a worker, requested and at most. Where training is estimated to need more of its host, and
    the job does not say how much, it gets that much."""
    device_memory: Quantity | None = None
    """Memory of one device, as CUDA reports it. A job that needs more is refused before it holds a device;
    left out, it is found out by running out of memory."""
    pod: JsonObject = {}
    """Laid over the spec of a worker's pod, spelt as there, and before everything that a job says:
    `runtimeClassName`, `hostNetwork`. Lists are added to."""
    container: JsonObject = {}
    """The same for a worker's container: what RDMA needs, `{securityContext: {capabilities: {add:
    [IPC_LOCK]}}, resources: {limits: {rdma/hca: 1}}}`."""

    @property
    def has_device(self) -> bool:
        """Whether a worker has a device, which Ray calls `GPU`."""
        return self.resource is not None or self.resource_claim_template is not None

    @model_validator(mode="after")
    def _gets_its_device_in_one_way(self) -> Self:
        if self.resource is not None and self.resource_claim_template is not None:
            raise PydanticCustomError(
                "device", "must have a resource or a resource_claim_template, not both: either is the device"
            )
        return self


_GKE = "cloud.google.com/gke-accelerator"
_KARPENTER = "karpenter.k8s.aws/instance-gpu-{}"
_AUTO_MODE = "eks.amazonaws.com/instance-gpu-{}"
_AKS = "karpenter.azure.com/sku-gpu-name"
_MACHINE = "node.kubernetes.io/instance-type"
_DISCOVERED = "nvidia.com/gpu.product"

_TOLERATIONS = [
    Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),
    Toleration(key="sku", operator="Equal", value="gpu", effect="NoSchedule"),
]
"""The taint that most clusters have, and that of AKS's tutorials."""


def _nvidia(
    cpu: int,
    memory: str,
    *,
    gke: Sequence[str] = (),
    aws: str | None = None,
    aws_memory: int | None = None,
    aks: str | None = None,
    aks_machines: Sequence[str] = (),
    discovered: Sequence[str],
) -> AcceleratorProfile:
    """The profile of an NVIDIA device by the names that platforms give it.

    `aws_memory` (MiB) and `aks_machines` are for devices whose name alone says too little.
    """
    return AcceleratorProfile(
        resource="nvidia.com/gpu",
        node_labels=list(_alternatives(gke, aws, aws_memory, aks, aks_machines, discovered)),
        tolerations=_TOLERATIONS,
        cpu=cpu,
        memory=memory,
    )


def _alternatives(
    gke: Sequence[str],
    aws: str | None,
    aws_memory: int | None,
    aks: str | None,
    aks_machines: Sequence[str],
    discovered: Sequence[str],
) -> Iterator[dict[str, list[str]]]:
    if gke:
        yield {_GKE: list(gke)}
    if aws is not None:
        for label in (_KARPENTER, _AUTO_MODE):
            size = {label.format("memory"): [str(aws_memory)]} if aws_memory is not None else {}
            yield {label.format("name"): [aws], **size}
    if aks is not None:
        yield {_AKS: [aks]}
    if aks_machines:
        yield {_MACHINE: list(aks_machines)}
    yield {_DISCOVERED: list(discovered)}


_A100_40G = ["NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"]
_A100_80G = ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"]

# CPU and memory of a worker leave room for system pods on the smallest machine with one such device, or fill
# an eighth of one with eight. A whole A10, and a size of A100, are known on AKS by the machine only: a sixth
# of an A10 has the same name.
_PROFILES = {
    NO_DEVICE: AcceleratorProfile(cpu=2, memory="4Gi"),
    "T4": _nvidia(3, "10Gi", gke=["nvidia-tesla-t4"], aws="t4", aks="T4", discovered=["Tesla-T4"]),
    "V100": _nvidia(
        4,
        "22Gi",
        gke=["nvidia-tesla-v100"],
        aws="v100",
        aks="V100",
        discovered=[
            "Tesla-V100-SXM2-16GB",
            "Tesla-V100-SXM2-32GB",
            "Tesla-V100-SXM3-32GB",
            "Tesla-V100-PCIE-16GB",
            "Tesla-V100-PCIE-32GB",
        ],
    ),
    "L4": _nvidia(3, "11Gi", gke=["nvidia-l4"], aws="l4", discovered=["NVIDIA-L4"]),
    "L40S": _nvidia(3, "24Gi", aws="l40s", discovered=["NVIDIA-L40S"]),
    "A10G": _nvidia(3, "11Gi", aws="a10g", discovered=["NVIDIA-A10G"]),
    "A10": _nvidia(
        6,
        "20Gi",
        aks_machines=["Standard_NV36ads_A10_v5", "Standard_NV36adms_A10_v5", "Standard_NV72ads_A10_v5"],
        discovered=["NVIDIA-A10"],
    ),
    "A100": _nvidia(
        10,
        "70Gi",
        gke=["nvidia-tesla-a100", "nvidia-a100-80gb"],
        aws="a100",
        aks="A100",
        discovered=[*_A100_40G, *_A100_80G],
    ),
    "A100-40G": _nvidia(
        10,
        "70Gi",
        gke=["nvidia-tesla-a100"],
        aws="a100",
        aws_memory=40960,
        aks_machines=["Standard_ND96asr_v4"],
        discovered=_A100_40G,
    ),
    "A100-80G": _nvidia(
        10,
        "120Gi",
        gke=["nvidia-a100-80gb"],
        aws="a100",
        aws_memory=81920,
        aks_machines=[
            "Standard_NC24ads_A100_v4",
            "Standard_NC48ads_A100_v4",
            "Standard_NC96ads_A100_v4",
            "Standard_ND96amsr_A100_v4",
        ],
        discovered=_A100_80G,
    ),
    "H100": _nvidia(
        10,
        "180Gi",
        gke=["nvidia-h100-80gb", "nvidia-h100-mega-80gb"],
        aws="h100",
        aks="H100",
        discovered=["NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"],
    ),
    "H200": _nvidia(
        10,
        "200Gi",
        gke=["nvidia-h200-141gb"],
        aws="h200",
        aks="H200",
        discovered=["NVIDIA-H200", "NVIDIA-H200-NVL"],
    ),
    "B200": _nvidia(20, "210Gi", gke=["nvidia-b200"], aws="b200", discovered=["NVIDIA-B200"]),
}
_DEFAULTS = {
    name: profile.model_copy(update={"device_memory": f"{MEMORY[name]:g}Gi"}) if name in MEMORY else profile
    for name, profile in _PROFILES.items()
}


def effective_profiles(overrides: Mapping[str, AcceleratorProfile | None]) -> dict[str, AcceleratorProfile]:
    """The default profiles by type, with these over them: one replaces a profile whole, None removes it."""
    return {name: profile for name, profile in {**_DEFAULTS, **overrides}.items() if profile is not None}
