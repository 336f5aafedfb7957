"""What the operator reads of Kubernetes objects: the fields that decisions depend on, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.assignment import RECORD_KEY
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.names import ATTEMPT, NODE_TYPE, PREPARE, ROLE

KubernetesObject = dict[str, JsonValue]
"""A Kubernetes object as the API server reads and writes it."""


def _absent_is_empty(value: object) -> object:
    return {} if value is None else value


class ObservedPart(BaseModel):
    """Base of what is read: fields are camelCase in Kubernetes, and all other fields are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


Texts = Annotated[dict[str, str], BeforeValidator(_absent_is_empty)]


class ObjectMeta(ObservedPart):
    """metav1.ObjectMeta."""

    name: str
    namespace: str = ""
    uid: str
    generation: int = 1
    resource_version: str = ""
    labels: Texts = {}
    annotations: Texts = {}
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    """When an object that is being deleted has to be gone; for pods the end of their grace period."""


class ContainerState(ObservedPart):
    """Why a container waits, since when it runs, or how it ended."""

    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None


class ContainerStates(ObservedPart):
    """The state of a container, which is one of these; of its last state, only how it ended."""

    waiting: ContainerState | None = None
    running: ContainerState | None = None
    terminated: ContainerState | None = None


class ContainerStatus(ObservedPart):
    """corev1.ContainerStatus."""

    name: str = ""
    image: str = ""
    state: ContainerStates = ContainerStates()
    last_state: ContainerStates = ContainerStates()


class ObservedCondition(ObservedPart):
    """A condition of an object that Kubernetes or KubeRay writes."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class SchedulingGate(ObservedPart):
    """What keeps the scheduler from a pod until somebody takes it away."""

    name: str = ""


class PodSpec(ObservedPart):
    """corev1.PodSpec."""

    scheduling_gates: list[SchedulingGate] = []


class PodStatus(ObservedPart):
    """corev1.PodStatus."""

    phase: str = ""
    reason: str = ""
    """Why the kubelet has ended the pod, or not taken it: `Evicted`, `OutOfcpu`, `NodeShutdown`."""
    message: str = ""
    conditions: list[ObservedCondition] = []
    init_container_statuses: list[ContainerStatus] = []
    container_statuses: list[ContainerStatus] = []


class Pod(ObservedPart):
    """A pod of a job: of its Ray cluster, the client that submits the program, or the one that prepares."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def name(self) -> str:
        """The pod's name."""
        return self.metadata.name

    @property
    def role(self) -> Literal["worker", "head", "submitter", "prepare"]:
        """What it is in the job, which is also the name of the container that the operator has asked for."""
        if self.metadata.labels.get(ROLE) == PREPARE:
            return "prepare"
        match self.metadata.labels.get(NODE_TYPE):
            case "worker":
                return "worker"
            case "head":
                return "head"
            case _:
                return "submitter"

    @property
    def is_worker(self) -> bool:
        """Whether it is a worker of the Ray cluster."""
        return self.role == "worker"

    @property
    def is_head(self) -> bool:
        """Whether it is the head of the Ray cluster, where the driver runs."""
        return self.role == "head"

    @property
    def is_submitter(self) -> bool:
        """Whether it hands the program to Ray."""
        return self.role == "submitter"

    @property
    def prepares(self) -> bool:
        """Whether it prepares the job, before there is a Ray cluster."""
        return self.role == "prepare"

    @property
    def is_ready(self) -> bool:
        """Whether its condition Ready holds."""
        return any(
            condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions
        )

    @property
    def has_ended(self) -> bool:
        """Whether all of its containers have ended, so that it holds no devices.

        One that has no device has also ended when its own container has, whatever a sidecar keeps alive.
        """
        if self.is_over:
            return True
        own = self.own_container
        alone = self.is_submitter or self.prepares
        return alone and own is not None and own.state.terminated is not None

    @property
    def is_over(self) -> bool:
        """Whether Kubernetes says that all of its containers have ended, sidecars too."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def still_runs(self) -> list[str]:
        """The names of its containers that run, but for init containers."""
        return [each.name for each in self.status.container_statuses if each.state.running is not None]

    @property
    def containers(self) -> list[ContainerStatus]:
        """Its containers with the init containers before them, in the order in which they start."""
        return [*self.status.init_container_statuses, *self.status.container_statuses]

    @property
    def has_failed(self) -> bool:
        """Whether the kubelet has ended it, or not taken it, for a reason of its own."""
        return self.status.phase == "Failed" and self.status.reason != ""

    @property
    def disruption(self) -> ObservedCondition | None:
        """Why it is being taken away: preempted, or its node is drained or does not answer; None when not."""
        return next(
            (
                each
                for each in self.status.conditions
                if each.type == "DisruptionTarget" and each.status == "True"
            ),
            None,
        )

    @property
    def own_container(self) -> ContainerStatus | None:
        """The container that the operator has asked for; others are KubeRay's, or of a service mesh."""
        statuses = self.status.container_statuses
        named = next((each for each in statuses if each.name == self.role), None)
        return named or next(iter(statuses), None)


class RayClusterStatus(ObservedPart):
    """rayv1.RayClusterStatus."""

    conditions: list[ObservedCondition] = []


class RayCluster(ObservedPart):
    """A job's Ray cluster."""

    metadata: ObjectMeta
    status: RayClusterStatus = RayClusterStatus()

    @property
    def ready_since(self) -> datetime | None:
        """When all of its pods were ready for the first time; None before, and where KubeRay does not say."""
        return next(
            (
                condition.last_transition_time
                for condition in self.status.conditions
                if condition.type == "RayClusterProvisioned" and condition.status == "True"
            ),
            None,
        )


class RayJobStatus(ObservedPart):
    """rayv1.RayJobStatus."""

    job_status: str = ""
    job_deployment_status: str = ""
    reason: str = ""
    message: str = ""
    ray_cluster_name: str = ""
    dashboard_url: Annotated[str, Field(alias="dashboardURL")] = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


class RayJobSpec(ObservedPart):
    """The part of a RayJob's spec that Kueue writes."""

    suspend: bool = False


class RayJob(ObservedPart):
    """The RayJob of an attempt."""

    metadata: ObjectMeta
    spec: RayJobSpec = RayJobSpec()
    status: RayJobStatus = RayJobStatus()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, well or not. KubeRay has no way out of ValidationFailed either."""
        return self.status.job_deployment_status in ("Complete", "Failed", "ValidationFailed")

    @property
    def has_succeeded(self) -> bool:
        """Whether its program ended well. A job that was stopped is Complete as well, but not SUCCEEDED."""
        return self.status.job_deployment_status == "Complete" and self.status.job_status == "SUCCEEDED"

    @property
    def is_queued(self) -> bool:
        """Whether Kueue holds it back."""
        return self.spec.suspend or self.status.job_deployment_status in ("Suspending", "Suspended")

    @property
    def is_running(self) -> bool:
        """Whether its cluster is up, so that its program can be submitted."""
        return self.status.job_deployment_status == "Running"

    @property
    def is_submitted(self) -> bool:
        """Whether Ray has its program."""
        return self.status.job_status != ""


class PrepareJobSpec(ObservedPart):
    """The part of a Job's spec that a queue writes."""

    suspend: bool = False


class PrepareJobStatus(ObservedPart):
    """batchv1.JobStatus."""

    conditions: list[ObservedCondition] = []
    start_time: datetime | None = None
    """When Kubernetes took it up, or last resumed it."""


class PrepareJob(ObservedPart):
    """The Kubernetes Job that prepares for an attempt."""

    metadata: ObjectMeta
    spec: PrepareJobSpec = PrepareJobSpec()
    status: PrepareJobStatus = PrepareJobStatus()

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, well or not; None before, and where Kubernetes does not say."""
        return next((each.last_transition_time for each in self._ends), None)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, well or not; its pod may still be on its way out."""
        return bool(self._ends)

    @property
    def has_succeeded(self) -> bool:
        """Whether its program ended well."""
        return any(each.type in ("Complete", "SuccessCriteriaMet") for each in self._ends)

    @property
    def _ends(self) -> list[ObservedCondition]:
        # The last two come first, while pods are on their way out.
        ends = ("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget")
        return [each for each in self.status.conditions if each.type in ends and each.status == "True"]


class ConfigMap(ObservedPart):
    """The config map of a job, less what the operator itself has put there."""

    metadata: ObjectMeta
    record: str | None = None
    """The progress record as the trainer wrote it: untrusted text."""


def read_config_map(body: KubernetesObject) -> ConfigMap:
    """Reads a job's config map."""
    data = body.get("data")
    record = data.get(RECORD_KEY) if isinstance(data, dict) else None
    return ConfigMap.model_validate(
        {"metadata": body["metadata"], "record": str(record) if record is not None else None}
    )


class Job(ObservedPart):
    """A FineTuneJob as it is stored; its spec is not validated yet."""

    metadata: ObjectMeta
    spec: dict[str, JsonValue] = {}
    status: FineTuneJobStatus = FineTuneJobStatus()

    @property
    def attempt(self) -> int:
        """The current attempt, counted from 1."""
        return self.status.attempts or 1


@dataclass(frozen=True, slots=True)
class EndedJob:
    """All that is kept of a job that has ended and needs nothing more."""

    namespace: str
    name: str
    phase: Phase


def read_job(body: dict[str, JsonValue]) -> Job:
    """Reads a FineTuneJob; fields of its status that are not valid are left out, since it is written anew."""
    status = body.get("status")
    known = _readable_status(status) if isinstance(status, dict) else FineTuneJobStatus()
    return Job.model_validate({**body, "status": known})


def _readable_status(stored: dict[str, JsonValue]) -> FineTuneJobStatus:
    try:
        return FineTuneJobStatus.model_validate(stored)
    except ValidationError as error:
        wrong = {detail["loc"][0] for detail in error.errors(include_url=False) if detail["loc"]}
        return FineTuneJobStatus.model_validate(
            {key: value for key, value in stored.items() if key not in wrong}
        )


@dataclass(frozen=True)
class Observed:
    """All that is known of a job at one moment, as the cluster has it."""

    job: Job
    ray_job: RayJob | None = None
    """The RayJob of the current attempt."""
    prepare_job: PrepareJob | None = None
    """The Job that prepares for the current attempt; it is looked for only where there is no RayJob."""
    ray_clusters: tuple[RayCluster, ...] = ()
    """The Ray clusters of all attempts."""
    pods: tuple[Pod, ...] = ()
    """The pods of all attempts."""
    lost_pods: tuple[Pod, ...] = ()
    """Pods that were lost in the last minutes and are deleted since, as they were at last."""
    record: str | None = None
    """The progress record as the trainer wrote it: untrusted text."""

    @property
    def ray_cluster(self) -> RayCluster | None:
        """The Ray cluster of the current RayJob; None before there is one."""
        name = self.ray_job.status.ray_cluster_name if self.ray_job else ""
        return next((cluster for cluster in self.ray_clusters if cluster.metadata.name == name), None)

    @property
    def pods_of_attempt(self) -> list[Pod]:
        """The pods of the current attempt's RayJob."""
        return [pod for pod in self.pods if self._is_of_attempt(pod) and not pod.prepares]

    @property
    def lost_pods_of_attempt(self) -> list[Pod]:
        """Those pods of the current attempt's RayJob that were lost and are deleted since."""
        return [pod for pod in self.lost_pods if self._is_of_attempt(pod) and not pod.prepares]

    @property
    def pods_that_prepare(self) -> list[Pod]:
        """The pods that prepare for the current attempt."""
        return [pod for pod in self.pods if self._is_of_attempt(pod) and pod.prepares]

    @property
    def lost_pods_that_prepare(self) -> list[Pod]:
        """Those of them that were lost and are deleted since."""
        return [pod for pod in self.lost_pods if self._is_of_attempt(pod) and pod.prepares]

    def _is_of_attempt(self, pod: Pod) -> bool:
        attempt = str(self.job.attempt)
        return pod.metadata.labels.get(ATTEMPT, attempt) == attempt
