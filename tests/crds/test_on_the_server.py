"""The CustomResourceDefinition on a real API server: what is refused, what may change, and what is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from kubernetes.client import ApiException, CoreV1Api, V1Namespace, V1ObjectMeta
from kubernetes.config import new_client_from_config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.resource import Resource
from pydantic import JsonValue
from tests.crds.reading import problems_of, spec_of
from tests.crds.test_crd import SPEC, keys_of
from tests.crds.test_manifest import EXAMPLES, QUOTED, specs
from tests.crds.test_status import FULL, MOST, WRONG_METRICS
from tests.crds.wrong_specs import CONTRADICTIONS, RIGHT, WRONG_ACCELERATORS, WRONG_FIELDS

from devcluster.control_plane import ControlPlane
from devcluster.waiting import wait_for
from finetune_api.consistency import warnings
from finetune_api.crd import MUTABLE, PLURAL, UNSEEN, crd, unchecked_fields
from finetune_api.failure import FineTuneError
from finetune_api.manifest import API_VERSION, KIND, Manifest, read_manifest, read_spec
from finetune_api.rules import UNBUILT_TASK_BLOCKS
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Evaluation, FineTuneJobStatus
from finetune_api.yaml_text import dump, parse

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
SMALLEST, _ = parse(RIGHT, "right.yaml")
CANNOT_CHANGE = "cannot change after creation; make a new FineTuneJob"
NEITHER_ADDED_NOR_REMOVED = "fields can neither be added nor removed after creation; make a new FineTuneJob"
ONLY_THESE_CAN_CHANGE = "only suspend and run_policy can change after creation"


def a_name() -> str:
    return f"test-{uuid4().hex[:8]}"


def job(spec: object, name: str = "job") -> Object:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def job_of(text: str) -> Object:
    """A job with the smallest spec and what a text adds to it."""
    added, _ = parse(text, "spec.yaml")
    return job(SMALLEST | added)


def templates(**changes: JsonValue) -> str:
    """A generation_config that would be right but for these changes."""
    right = dict.fromkeys(("system", "user", "assistant"), "{instruction}")
    return f"generation_config: {json.dumps({'prompt_format': right | changes})}"


class Server:
    """The FineTuneJobs of one namespace."""

    def __init__(self, resource: Resource, namespace: str) -> None:
        self.resource = resource
        self.namespace = namespace

    def try_out(self, document: Object | str) -> Object:
        """What the server would store; a text is YAML for the server to read.

        Unknown fields are refused, as kubectl asks for.
        """
        content_type = "application/yaml" if isinstance(document, str) else "application/json"
        query = [("fieldValidation", "Strict"), ("dryRun", "All")]
        return self._stored(
            self.resource.create(
                body=document, namespace=self.namespace, content_type=content_type, query_params=query
            )
        )

    def apply(self, document: Object) -> Object:
        query = [("fieldValidation", "Strict")]
        applied = self.resource.server_side_apply(
            body=document, namespace=self.namespace, field_manager="test", query_params=query
        )
        return self._stored(applied)

    def create(self, spec: Object) -> str:
        """The name of a job that is there from now on."""
        name = a_name()
        self.resource.create(body=job(spec, name), namespace=self.namespace)
        return name

    def change(self, name: str, spec: Object, *, kept: bool = False) -> Object:
        """What the server would store when fields are changed, and those that are None removed."""
        query = [] if kept else [("dryRun", "All")]
        changed = self.resource.patch(
            name=name,
            namespace=self.namespace,
            body={"spec": spec},
            content_type=MERGE,
            query_params=[*query, ("fieldValidation", "Strict")],
        )
        return self._stored(changed)

    def read(self, name: str) -> Object:
        return self._stored(self.resource.get(name=name, namespace=self.namespace))

    @staticmethod
    def _stored(answer: Any) -> Object:  # noqa: ANN401
        return dict(answer.to_dict())


@pytest.fixture(scope="module")
def server(api_server: ControlPlane) -> Iterator[Server]:
    with new_client_from_config(str(api_server.kubeconfig)) as client:
        dynamic = DynamicClient(client)
        definitions = dynamic.resources.get(
            api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition"
        )
        definitions.server_side_apply(body=crd(), field_manager="test")

        def served() -> bool:
            try:
                return bool(api_server.get(f"/apis/{API_VERSION}/{PLURAL}"))
            except OSError:
                return False

        wait_for("FineTuneJobs to be served", served, seconds=30, every=0.05)
        core = CoreV1Api(client)
        namespace = a_name()
        core.create_namespace(V1Namespace(metadata=V1ObjectMeta(name=namespace)))
        yield Server(dynamic.resources.get(api_version=API_VERSION, kind=KIND), namespace)
        core.delete_namespace(namespace)


@pytest.fixture(scope="module")
def smallest(server: Server) -> str:
    return server.create(SMALLEST)


def problems(refused: pytest.ExceptionInfo[ApiException]) -> list[str]:
    """`field: what is wrong` for all that the server refused."""
    status = json.loads(refused.value.body or "{}")
    causes = [
        f"{cause['field']}: {cause['message']}" for cause in status.get("details", {}).get("causes", ())
    ]
    return causes + [
        f"{field}: is unknown" for field in re.findall(r'unknown field "(.+?)"', status["message"])
    ]


def about(field: str, found: list[str]) -> str:
    """Those of the problems that are about a field or about what is below it."""
    keys = keys_of(field)
    return "\n".join(problem for problem in found if keys_of(problem)[: len(keys)] == keys)


WRONG = [
    *WRONG_FIELDS,
    *CONTRADICTIONS,
    *(
        (f"worker_resources: {resources}", f"spec.worker_resources: {problem}")
        for resources, problem in WRONG_ACCELERATORS
    ),
]

NO_JSON = {"num_epochs: .inf", "learning_rate: .nan", "cluster: {affinity: {a: .inf}}"}
"""What cannot be sent to a server at all."""

LEFT_TO_THE_OPERATOR = {
    # Fields of several types, which a structural schema cannot say; CEL does not see them.
    "initial_base_model_ckpt_path: 5": "spec.initial_base_model_ckpt_path",
    "initial_base_model_ckpt_path: [a]": "spec.initial_base_model_ckpt_path",
    "initial_base_model_ckpt_path: {}": "spec.initial_base_model_ckpt_path.repo_id",
    "initial_base_model_ckpt_path: awsv2://x": "spec.initial_base_model_ckpt_path",
    "train_path: [a]": "spec.train_path[0]",
    "train_path: 5": "spec.train_path",
    "train_path: []": "spec.train_path",
    "train_path: S3://bucket/t.jsonl": "spec.train_path",
    "train_path: s3:///t.jsonl": "spec.train_path",
    "train_path: hf://owner/name/t.jsonl": "spec.train_path",
    "train_path: [{path: a, weight: 0}]": "spec.train_path[0].weight",
    "train_path: [{path: a, rows: 0}]": "spec.train_path[0].rows",
    "train_path: [{path: a, share: 2}]": "spec.train_path[0].share",
    "train_path: [{path: a, weight: 2, rows: 3}]": "spec.train_path[0].rows",
    "sample_prompts: What?": "spec.sample_prompts",
    "sample_prompts: 17": "spec.sample_prompts",
    "sample_prompts: []": "spec.sample_prompts",
    "sample_prompts: [a, 5]": "spec.sample_prompts[1]",
    "sample_prompts: 2": "spec.sample_prompts",
    "initial_adapter_model_ckpt_path: a": "spec.initial_adapter_model_ckpt_path",
    "lora_config: {target_modules: 5}": "spec.lora_config.target_modules",
    "lora_config: {target_modules: [q_proj, 5]}": "spec.lora_config.target_modules[1]",
    "lora_config: {target_modules: ''}": "spec.lora_config.target_modules",
    "lora_config: {exclude_modules: {a: b}}": "spec.lora_config.exclude_modules",
    "lora_config: {layers_to_transform: all}": "spec.lora_config.layers_to_transform",
    "lora_config: {layers_to_transform: [0, -1]}": "spec.lora_config.layers_to_transform[1]",
    "lora_config: {layers_to_transform: 3}": "spec.lora_config.layers_to_transform",
    "lora_config: {target_modules: [q_proj], layers_pattern: layers}": "spec.lora_config.layers_pattern",
    "lora_config: {trainable_token_indices: 5}": "spec.lora_config.trainable_token_indices",
    "lora_config: {lora_bias: true, init_lora_weights: gaussian}": "spec.lora_config.lora_bias",
    **{
        f"quantization: nf4\nlora_config: {{init_lora_weights: {name}}}": "spec.lora_config.init_lora_weights"
        for name in ("olora", "pissa", "orthogonal", "mica")
    },
    "classifier_config: {label_tokens: [a, b]}\nlora_config: {trainable_token_indices: [5]}": (
        "spec.lora_config.trainable_token_indices"
    ),
    # Which keys are of one form, and whether two are alike, takes more of CEL than it is worth.
    "data_columns: {prompt: a, output: b}": "spec.data_columns",
    "task: preference_tuning\ndata_columns: {messages: dialog}": "spec.data_columns",
    "data_columns: {prompt: a, completion: a}": "spec.data_columns",
    # Maps that CEL cannot look into.
    "lora_config: {loftq_config: {loftq_bits: 4}}": "spec.lora_config.loftq_config",
    "quantization: nf4\nlora_config: {velora_config: {}}": "spec.lora_config.velora_config",
    "quantization: nf4\nlora_config: {use_bdlora: {}}": "spec.lora_config.use_bdlora",
    # Comparing all keys with all others costs more than CEL may.
    "worker_resources: {'accelerator_type:L4': 1, 'anyscale/accelerator_shape:4xA10G': 1}": (
        "spec.worker_resources"
    ),
    # Sizes of keys, which no schema bounds.
    f"cluster: {{labels: {{{'k' * 318}: v}}}}": "spec.cluster.labels",
    "cluster: {labels: {my team: v}}": "spec.cluster.labels",
    "cluster: {annotations: {/note: v}}": "spec.cluster.annotations",
    "lora_config: {rank_pattern: {'': 8}}": "spec.lora_config.rank_pattern",
    # Templates in Python's syntax.
    templates(assistant="{{instruction}}"): "spec.generation_config.prompt_format",
    templates(user="{instruction} {name}"): "spec.generation_config.prompt_format",
}

REFUSED = [
    # Numbers at the other end of their ranges
    ("num_epochs: 100001", "spec.num_epochs", "less than or equal to 100000"),
    ("min_num_update_steps: 0", "spec.min_num_update_steps", "greater than or equal to 1"),
    ("min_update_steps: 1000000001", "spec.min_update_steps", "less than or equal to"),
    ("num_warmup_steps: 1000000001", "spec.num_warmup_steps", "less than or equal to"),
    ("num_warmup_steps: 1.5", "spec.num_warmup_steps", "integer"),
    ("context_length: 16777217", "spec.context_length", "less than or equal to"),
    ("train_batch_size_per_device: 65537", "spec.train_batch_size_per_device", "less than or equal to 65536"),
    ("eval_batch_size_per_device: 65537", "spec.eval_batch_size_per_device", "less than or equal to 65536"),
    ("gradient_accumulation_steps: 65537", "spec.gradient_accumulation_steps", "less than or equal to 65536"),
    ("learning_rate: [1e-4]", "spec.learning_rate", "number"),
    ("learning_rate: true", "spec.learning_rate", "number"),
    ("weight_decay: 1.1", "spec.weight_decay", "less than or equal to 1"),
    ("max_grad_norm: 1e10", "spec.max_grad_norm", "less than or equal to"),
    ("seed: 4294967296", "spec.seed", "less than or equal to 4294967295"),
    ("seed: random", "spec.seed", "integer"),
    ("checkpoint_every_n_epochs: 100001", "spec.checkpoint_every_n_epochs", "less than or equal to"),
    ("max_num_checkpoints: 100001", "spec.max_num_checkpoints", "less than or equal to"),
    (
        "checkpoint_and_evaluation_frequency: {frequency: 0}",
        "spec.checkpoint_and_evaluation_frequency.frequency",
        "greater than",
    ),
    ("num_data_blocks_per_device: 0", "spec.num_data_blocks_per_device", "greater than or equal to 1"),
    ("dataset_size_scaling_factor: 0", "spec.dataset_size_scaling_factor", "greater than 0"),
    ("preference_tuning_config: {beta: 0}", "spec.preference_tuning_config.beta", "greater than 0"),
    ("classifier_config: {label_tokens: [a]}", "spec.classifier_config.label_tokens", "at least 2 items"),
    (
        "classifier_config: {label_tokens: [a, ' b']}",
        "spec.classifier_config.label_tokens[1]",
        "should match",
    ),
    (
        "classifier_config: {label_tokens: [a, b], eval_metrics: [auc]}",
        "spec.classifier_config.eval_metrics[0]",
        "Unsupported value",
    ),
    # Required, or of the wrong type
    ("model_id: null", "spec.model_id", "Required value"),
    ("model_id: 5", "spec.model_id", "string"),
    ("storage: {}", "spec.storage.path", "Required value"),
    ("logger: {rank_zero_only: true}", "spec.logger.provider", "Required value"),
    ("deepspeed: {config_path: ''}", "spec.deepspeed.config_path", "at least 1 chars"),
    ("packing: 1", "spec.packing", "boolean"),
    ("suspend: 'yes'", "spec.suspend", "boolean"),
    ("gradient_checkpointing: 0", "spec.gradient_checkpointing", "boolean"),
    ("liger_kernel: {enabled: 1}", "spec.liger_kernel.enabled", "boolean"),
    ("torch_compile: {mode: fastest}", "spec.torch_compile.mode", "Unsupported value"),
    ("torch_compile: {backend: 5}", "spec.torch_compile.backend", "string"),
    ("dtype: BF16", "spec.dtype", "Unsupported value"),
    ("generation_config: []", "spec.generation_config", "object"),
    (
        "generation_config: {prompt_format: {system: a, user: b}}",
        "spec.generation_config.prompt_format.assistant",
        "Required value",
    ),
    (templates(bos=5), "spec.generation_config.prompt_format.bos", "string"),
    (
        templates(system="instruction"),
        "spec.generation_config.prompt_format",
        "system must contain {instruction}",
    ),
    (templates(user=""), "spec.generation_config.prompt_format", "user must contain {instruction}"),
    (
        templates(assistant="{system}"),
        "spec.generation_config.prompt_format",
        "assistant must contain {instruction}",
    ),
    (templates(system_in_user=True), "spec.generation_config.prompt_format", "user must contain {system}"),
    (
        templates(system_in_last_user=True),
        "spec.generation_config.prompt_format",
        "needs system_in_user: true",
    ),
    (
        "generation_config: {stopping_sequences: ['']}",
        "spec.generation_config.stopping_sequences[0]",
        "at least 1 chars",
    ),
    # Paths
    ("model_id: s3://", "spec.model_id", "must be a plain path"),
    ("model_id: hf://owner/name/file", "spec.model_id", "must be a plain path"),
    ("valid_path: file://", "spec.valid_path", "must be a plain path"),
    ("valid_path: ftp://host/t.jsonl", "spec.valid_path", "must be a plain path"),
    ("valid_path: gs:///v.jsonl", "spec.valid_path", "must be a plain path"),
    ("valid_path: pvc:///v.jsonl", "spec.valid_path", "must be a plain path"),
    ("storage: {path: configmap://name/key}", "spec.storage.path", "must be a plain path"),
    ("storage: {path: ''}", "spec.storage.path", "at least 1 chars"),
    # Accelerators
    (
        "worker_resources: {'accelerator_type:A10G': 0}",
        "spec.worker_resources[accelerator_type:A10G]",
        "greater than 0",
    ),
    (
        "worker_resources: {'accelerator_type:A10G': -1}",
        "spec.worker_resources[accelerator_type:A10G]",
        "greater than 0",
    ),
    (
        "worker_resources: {'accelerator_type:A10G': 1.001}",
        "spec.worker_resources",
        "at most 1, since each worker gets one device",
    ),
    (
        "worker_resources: {'accelerator_type:A10G': one}",
        "spec.worker_resources[accelerator_type:A10G]",
        "number",
    ),
    ("worker_resources: {'anyscale/accelerator_shape:': 1}", "spec.worker_resources", "must name a type"),
    ("worker_resources: {'anyscale/accelerator_shape:4x': 1}", "spec.worker_resources", "must name a type"),
    (
        "worker_resources: {'anyscale/accelerator_shape:4xA10G': 1, 'anyscale/accelerator_shape:8xL4': 1}",
        "spec.worker_resources",
        "must name one accelerator type",
    ),
    ("trainer_resources: {memory: 0}", "spec.trainer_resources.memory", "greater than 0"),
    ("trainer_resources: {memory: 1e16}", "spec.trainer_resources.memory", "less than or equal to"),
    ("trainer_resources: 64", "spec.trainer_resources", "object"),
    # LoRA
    ("lora_config: {r: 65537}", "spec.lora_config.r", "less than or equal to 65536"),
    ("lora_config: {r: true}", "spec.lora_config.r", "integer"),
    ("lora_config: {lora_alpha: 0}", "spec.lora_config.lora_alpha", "greater than or equal to 1"),
    ("lora_config: {lora_dropout: -0.1}", "spec.lora_config.lora_dropout", "greater than or equal to 0"),
    ("lora_config: {use_rslora: 1}", "spec.lora_config.use_rslora", "boolean"),
    ("lora_config: {modules_to_save: ['']}", "spec.lora_config.modules_to_save[0]", "at least 1 chars"),
    ("lora_config: {alpha_pattern: {q_proj: 1.5}}", "spec.lora_config.alpha_pattern.q_proj", "integer"),
    ("lora_config: {rank_pattern: [8]}", "spec.lora_config.rank_pattern", "object"),
    (
        "lora_config: {layer_replication: [[0, 4, 8]]}",
        "spec.lora_config.layer_replication[0]",
        "at most 2 items",
    ),
    (
        "lora_config: {layer_replication: [[0, -1]]}",
        "spec.lora_config.layer_replication[0][1]",
        "greater than or equal to 0",
    ),
    (
        "lora_config: {alora_invocation_tokens: [-1]}",
        "spec.lora_config.alora_invocation_tokens[0]",
        "greater than or equal to 0",
    ),
    (
        "lora_config: {runtime_config: {ephemeral_gpu_offload: 1}}",
        "spec.lora_config.runtime_config.ephemeral_gpu_offload",
        "boolean",
    ),
    ("lora_config: {peft_type: ADALORA}", "spec.lora_config.peft_type", "Unsupported value"),
    ("lora_config: {megatron_core: ''}", "spec.lora_config.megatron_core", "at least 1 chars"),
    ("lora_config: {init_lora_weights: eva}", "spec.lora_config.init_lora_weights", "Unsupported value"),
    (
        "lora_config: {init_lora_weights: pissa_niter_4}",
        "spec.lora_config.init_lora_weights",
        "Unsupported value",
    ),
    ("lora_config: {init_lora_weights: [true]}", "spec.lora_config.init_lora_weights", "Unsupported value"),
    ("lora_config: {eva_config: 5}", "spec.lora_config.eva_config", "object"),
    ("lora_config: {velora_config: true}", "spec.lora_config.velora_config", "object"),
    # The run, the tracker and the pods
    ("run_policy: {backoff_limit: 101}", "spec.run_policy.backoff_limit", "less than or equal to 100"),
    (
        "run_policy: {active_deadline_seconds: 0}",
        "spec.run_policy.active_deadline_seconds",
        "greater than or equal to 1",
    ),
    (
        "run_policy: {starting_deadline_seconds: 0}",
        "spec.run_policy.starting_deadline_seconds",
        "greater than or equal to 1",
    ),
    (
        "run_policy: {ttl_seconds_after_finished: -1}",
        "spec.run_policy.ttl_seconds_after_finished",
        "greater than or equal to 0",
    ),
    ("run_policy: 3", "spec.run_policy", "object"),
    ("logger: wandb", "spec.logger", "object"),
    ("logger: {provider: wandb, provider_config: {tags: a}}", "spec.logger.provider_config.tags", "array"),
    ("logger: {provider: wandb, rank_zero_only: 0}", "spec.logger.rank_zero_only", "boolean"),
    ("cluster: {image: ''}", "spec.cluster.image", "at least 1 chars"),
    (f"cluster: {{image: {'i' * 1025}}}", "spec.cluster.image", "Too long"),
    (f"cluster: {{service_account_name: {'s' * 254}}}", "spec.cluster.service_account_name", "Too long"),
    (f"cluster: {{labels: {{a: {'l' * 64}}}}}", "spec.cluster.labels.a", "Too long"),
    (f"cluster: {{annotations: {{a: {'l' * 16385}}}}}", "spec.cluster.annotations.a", "Too long"),
    ("cluster: {annotations: {a: 1}}", "spec.cluster.annotations.a", "string"),
    ("cluster: {affinity: []}", "spec.cluster.affinity", "object"),
    ("cluster: {volumes: [data]}", "spec.cluster.volumes[0]", "object"),
    ("cluster: {head: {resources: [cpu]}}", "spec.cluster.head.resources", "object"),
    (
        "cluster: {head: {resources: {limits: {cpu: ''}}}}",
        "spec.cluster.head.resources.limits.cpu",
        "must be a quantity",
    ),
    (
        "cluster: {head: {resources: {limits: {cpu: .5m}}}}",
        "spec.cluster.head.resources.limits.cpu",
        "must be a quantity",
    ),
    (
        "cluster: {head: {resources: {limits: {cpu: 1.5.5}}}}",
        "spec.cluster.head.resources.limits.cpu",
        "must be a quantity",
    ),
    (
        "cluster: {head: {resources: {limits: {memory: 16gi}}}}",
        "spec.cluster.head.resources.limits.memory",
        "must be a quantity",
    ),
    (
        'cluster: {head: {resources: {limits: {memory: "16Gi\\n"}}}}',
        "spec.cluster.head.resources.limits.memory",
        "must be a quantity",
    ),
    (
        "cluster: {head: {resources: {limits: {cpu: [2]}}}}",
        "spec.cluster.head.resources.limits.cpu",
        "integer,string",
    ),
    (
        "cluster: {worker: {resources: {limits: {cpu: 0.5}}}}",
        "spec.cluster.worker.resources.limits.cpu",
        "integer,string",
    ),
    (
        "cluster: {worker: {resource_claims: [{name: a}]}}",
        "spec.cluster.worker.resource_claims[0]",
        "must have either resourceClaimName or resourceClaimTemplateName",
    ),
    # What pods would be refused for
    ("cluster: {labels: {team: blue team}}", "spec.cluster.labels.team", "should match"),
    (
        "cluster: {worker: {node_selector: {pool: -a}}}",
        "spec.cluster.worker.node_selector.pool",
        "should match",
    ),
    (f"cluster: {{node_selector: {{pool: {'x' * 64}}}}}", "spec.cluster.node_selector.pool", "63"),
    # More than a list or a map may hold
    (
        f"logger: {{provider: wandb, provider_config: {{tags: {['t'] * 4097}}}}}",
        "spec.logger.provider_config.tags",
        "at most 4096 items",
    ),
    (
        f"generation_config: {{stopping_sequences: {['s'] * 65}}}",
        "spec.generation_config.stopping_sequences",
        "at most 64 items",
    ),
    (
        f"lora_config: {{layer_replication: {[[0, 1]] * 1025}}}",
        "spec.lora_config.layer_replication",
        "at most 1024 items",
    ),
    (
        f"lora_config: {{rank_pattern: { {f'm{i}': 8 for i in range(1025)} }}}",
        "spec.lora_config.rank_pattern",
        "at most 1024 items",
    ),
    (f"worker_resources: { {f'r{i}': 1 for i in range(33)} }", "spec.worker_resources", "at most 32 items"),
    (
        f"cluster: {{node_selector: { {f'l{i}': 'x' for i in range(65)} }}}",
        "spec.cluster.node_selector",
        "at most 64 items",
    ),
    (f"cluster: {{tolerations: {[{'key': 'x'}] * 65}}}", "spec.cluster.tolerations", "at most 64 items"),
    (
        f"cluster: {{image_pull_secrets: {[{'name': 'x'}] * 17}}}",
        "spec.cluster.image_pull_secrets",
        "at most 16 items",
    ),
    # Unknown fields
    ("storage: {path: /runs, bucket: b}", "spec.storage.bucket", "is unknown"),
    ("run_policy: {backoffLimit: 3}", "spec.run_policy.backoffLimit", "is unknown"),
    (
        "logger: {provider: wandb, provider_config: {entity: e}}",
        "spec.logger.provider_config.entity",
        "is unknown",
    ),
    (
        "lora_config: {runtime_config: {offload: true}}",
        "spec.lora_config.runtime_config.offload",
        "is unknown",
    ),
    ("cluster: {worker: {replicas: 2}}", "spec.cluster.worker.replicas", "is unknown"),
    (
        "cluster: {image_pull_secrets: [{name: a, key: b}]}",
        "spec.cluster.image_pull_secrets[0].key",
        "is unknown",
    ),
    ("cluster: {tolerationsSeconds: 1}", "spec.cluster.tolerationsSeconds", "is unknown"),
]
"""Mistakes besides those in `wrong_specs`, the field that the server must name, and words of its message."""


@pytest.mark.parametrize(
    ("text", "problem"),
    [(text, problem) for text, problem in WRONG if text not in NO_JSON | LEFT_TO_THE_OPERATOR.keys()],
    ids=lambda text: text[:100],
)
def test_the_server_finds_the_mistakes_that_the_models_find(server: Server, text: str, problem: str) -> None:
    with pytest.raises(ApiException) as refused:
        server.try_out(job_of(text))

    field, _, words = problem.partition(": ")
    assert about(field, problems(refused)), problems(refused)
    if (text, problem) in CONTRADICTIONS:
        assert words in about(field, problems(refused))


@pytest.mark.parametrize(("text", "field", "words"), REFUSED, ids=lambda text: text[:100])
def test_the_server_and_the_models_refuse_the_same_field(
    server: Server, text: str, field: str, words: str
) -> None:
    with pytest.raises(ApiException) as refused:
        server.try_out(job_of(text))

    assert words in about(field, problems(refused)), problems(refused)
    assert about(field, list(problems_of(text))), problems_of(text)


@pytest.mark.parametrize(("text", "field"), LEFT_TO_THE_OPERATOR.items(), ids=lambda text: text[:100])
def test_what_a_schema_cannot_say_is_left_to_the_operator(server: Server, text: str, field: str) -> None:
    stored = server.try_out(job_of(text))["spec"]

    assert about(field, list(problems_of(text))), problems_of(text)
    assert stored.keys() >= job_of(text)["spec"].keys()


@pytest.mark.parametrize("text", sorted(NO_JSON))
def test_what_is_no_json_is_refused_too(server: Server, text: str) -> None:
    with pytest.raises(ApiException) as refused:
        server.try_out(job_of(text))

    assert refused.value.status == 400


def test_a_job_needs_a_spec(server: Server) -> None:
    with pytest.raises(ApiException) as refused:
        server.try_out({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "job"}})

    assert about("spec", problems(refused)) == "spec: Required value"


@pytest.mark.parametrize("key", ["specs", "num_devices"])
def test_a_key_beside_spec_is_refused(server: Server, key: str) -> None:
    with pytest.raises(ApiException) as refused:
        server.try_out(job(SMALLEST) | {key: 1})

    assert problems(refused) == [f"{key}: is unknown"]


def test_a_length_is_that_of_characters_to_both(server: Server) -> None:
    longest = "é" * 256

    assert server.try_out(job_of(f"custom_model_tag: {longest}"))["spec"]["custom_model_tag"] == longest
    assert spec_of(f"custom_model_tag: {longest}").custom_model_tag == longest


def ordinary(value: JsonValue) -> JsonValue:
    """Without null, which the server drops, and without large floats, which it writes differently."""
    match value:
        case dict():
            return {key: ordinary(part) for key, part in value.items() if part is not None}
        case list():
            return [ordinary(part) for part in value if part is not None]
        case float() if abs(value) > 2**53:
            return 0.5
        case _:
            return value


@given(document=specs.map(ordinary))
def test_what_is_right_for_the_models_is_right_for_the_server_and_comes_back_the_same(
    server: Server, document: dict[str, JsonValue]
) -> None:
    spec = read_spec(document)
    manifest = Manifest.model_validate({"metadata": {"name": "job"}, "spec": spec})

    assert read_spec(server.try_out(manifest.document)["spec"]) == spec


CHANGES: dict[str, tuple[JsonValue, JsonValue]] = {
    "model_id": ("m", "n"),
    "initial_base_model_ckpt_path": ("a", {"repo_id": "o/n"}),
    "initial_adapter_model_ckpt_path": ("a", "b"),
    "resume_from": ("a", "b"),
    "train_path": ("t.jsonl", [{"path": "t.jsonl", "weight": 2}]),
    "valid_path": ("v.jsonl", "w.jsonl"),
    "eval_path": ("v.jsonl", "w.jsonl"),
    "valid_fraction": (0.1, 0.2),
    "data_columns": ({"text": "a"}, {"text": "b"}),
    "task": ("causal_lm", "instruction_tuning"),
    "generation_config": ({"stopping_sequences": ["a"]}, {"stopping_sequences": ["b"]}),
    "context_length": (512, 1024),
    "padding": ("max_length", "longest"),
    "packing": (True, False),
    "num_devices": (2, 4),
    "worker_resources": ({"accelerator_type:A10G": 0.001}, {"accelerator_type:A10G": 1}),
    "trainer_resources": ({"memory": 1}, {"memory": 2}),
    "train_batch_size_per_device": (1, 2),
    "eval_batch_size_per_device": (1, 2),
    "gradient_accumulation_steps": (2, 4),
    "num_epochs": (1, 2),
    "min_update_steps": (1, 2),
    "min_num_update_steps": (1, 2),
    "max_steps": (1, 2),
    "learning_rate": (1e-4, 1e-5),
    "lr_scheduler_type": ("linear", "constant"),
    "num_warmup_steps": (0, 1),
    "weight_decay": (0.1, 0.2),
    "max_grad_norm": (0.5, 2.0),
    "seed": (1, 2),
    "checkpoint_every_n_epochs": (1, 2),
    "max_num_checkpoints": (1, 2),
    "checkpoint_and_evaluation_frequency": ({"frequency": 1}, {"frequency": 2}),
    "num_checkpoints_to_keep": (2, 3),
    "eval_first": (True, False),
    "sample_prompts": (["a"], ["b"]),
    "sample_max_tokens": (32, 128),
    "eval_steps": (1, 2),
    "early_stopping_patience": (1, 2),
    "lora_config": ({"r": 8}, {"r": 16}),
    "dtype": ("bf16", "fp32"),
    "export_dtype": ("bf16", "fp32"),
    "parallelism": ("ddp", "fsdp"),
    "cpu_offload": (True, False),
    "quantization": ("nf4", None),
    "gradient_checkpointing": (True, False),
    "no_gradient_checkpoint": (True, False),
    "flash_attention_2": (True, False),
    "torch_compile": ({"enabled": True}, {"enabled": False}),
    "deepspeed": ({"config_path": "a"}, {"config_path": "b"}),
    "liger_kernel": ({"kwargs": {"rope": True}}, {"kwargs": {"rope": False}}),
    "storage": ({"path": "/a"}, {"path": "/b"}),
    "output": ({"push_to_hub": "a/b"}, {"push_to_hub": "a/c"}),
    "logger": ({"provider": "wandb"}, {"provider": "mlflow"}),
    "custom_model_tag": ("a", "b"),
    "model_tag": ("a", "b"),
    "output_dir": ("a", "b"),
    "num_data_blocks_per_device": (1, 2),
    "dataset_size_scaling_factor": (1, 2),
    "classifier_config": ({"label_tokens": ["a", "b"]}, {"label_tokens": ["a", "c"]}),
    "forward_checkpoint_config": ({"tag": "a"}, {"tag": "b"}),
    "webhook_config": ({"type": "a"}, {"type": "b"}),
    "preference_tuning_config": ({"beta": 0.1}, {"beta": 0.2}),
    "vision_language_config": (None, {"a": 1}),
    "cluster": ({"image": "a"}, {"image": "b"}),
}
"""A value that each field may have on creation, and another."""

REQUIRED = {name for name, field in FineTuneJobSpec.model_fields.items() if field.is_required()}
BESIDES: dict[str, Object] = {
    "quantization": {"lora_config": {}},
    "early_stopping_patience": {"valid_path": "v.jsonl"},
}
"""What a field needs besides."""
NEVER_THERE = set(UNBUILT_TASK_BLOCKS)
"""What cannot be asked for at all, and so cannot be removed."""


def immutable(field: str) -> tuple[str, str]:
    """The field that a change is refused for, and why."""
    return (
        ("spec", ONLY_THESE_CAN_CHANGE) if field in unchecked_fields() else (f"spec.{field}", CANNOT_CHANGE)
    )


def added_or_removed(field: str) -> tuple[str, str]:
    """Where it is said that a field cannot be added or removed, and how."""
    if field in unchecked_fields() or "default" in SPEC["properties"][field]:
        return immutable(field)
    return "spec", f"{NEITHER_ADDED_NOR_REMOVED}: {field}"


def test_every_field_but_those_that_may_change_is_tried() -> None:
    assert CHANGES.keys() == FineTuneJobSpec.model_fields.keys() - set(MUTABLE)


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_is_refused_in_the_name_of_its_field(server: Server, field: str) -> None:
    before, after = CHANGES[field]
    name = server.create(SMALLEST | BESIDES.get(field, {}) | {field: before})

    with pytest.raises(ApiException) as refused:
        server.change(name, {field: after})

    where, why = added_or_removed(field) if None in (before, after) else immutable(field)
    assert why in about(where, problems(refused))


@pytest.mark.parametrize("field", sorted(CHANGES.keys() - REQUIRED))
def test_a_field_cannot_be_added(server: Server, smallest: str, field: str) -> None:
    default = FineTuneJobSpec.model_fields[field].get_default()
    added = next(value for value in CHANGES[field] if value != default)

    with pytest.raises(ApiException) as refused:
        server.change(smallest, {field: added})

    where, why = added_or_removed(field)
    assert why in about(where, problems(refused))


@pytest.mark.parametrize("field", sorted(CHANGES.keys() - REQUIRED - NEVER_THERE))
def test_a_field_cannot_be_removed(server: Server, field: str) -> None:
    name = server.create(SMALLEST | BESIDES.get(field, {}) | {field: CHANGES[field][0]})

    with pytest.raises(ApiException) as refused:
        server.change(name, {field: None})

    where, why = added_or_removed(field)
    assert why in about(where, problems(refused))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"lora_config": {"target_modules": ["q_proj"]}}, {"lora_config": {"target_modules": ["k_proj"]}}),
        ({"lora_config": {"init_lora_weights": True}}, {"lora_config": {"init_lora_weights": "pissa"}}),
        (
            {"lora_config": {"exclude_modules": "a"}},
            {"lora_config": {"exclude_modules": None, "layers_pattern": "a"}},
        ),
        ({"liger_kernel": {"kwargs": {"rope": True}}}, {"liger_kernel": {"kwargs": {"rope": False}}}),
        (
            {"cluster": {"env": [{"name": "A", "value": "1"}]}},
            {"cluster": {"env": [{"name": "A", "value": "2"}]}},
        ),
        ({"cluster": {"affinity": {"a": {"b": 1}}}}, {"cluster": {"affinity": {"a": {"b": 2}}}}),
        ({"cluster": {"volumes": []}}, {"cluster": {"volumes": None, "tolerations": []}}),
    ],
    ids=str,
)
def test_a_change_deep_inside_is_seen_whatever_changes_with_it(
    server: Server, before: Object, after: Object
) -> None:
    name = server.create(SMALLEST | before)

    with pytest.raises(ApiException) as refused:
        server.change(name, {**after, "suspend": True})

    [field] = before
    assert CANNOT_CHANGE in about(f"spec.{field}", problems(refused))


def test_a_change_is_seen_that_comes_with_a_status(server: Server, smallest: str) -> None:
    """A write of a status is let pass without comparing specs; this one is of a spec."""
    with pytest.raises(ApiException) as refused:
        server.resource.patch(
            name=smallest,
            namespace=server.namespace,
            body={"spec": {"train_path": "another.jsonl"}, "status": {"phase": "Running"}},
            content_type=MERGE,
            query_params=[("dryRun", "All")],
        )

    assert ONLY_THESE_CAN_CHANGE in about("spec", problems(refused))


@pytest.mark.parametrize("field", unchecked_fields())
def test_what_cel_cannot_name_changes_together_with_what_may_and_only_the_operator_sees_it(
    server: Server, field: str
) -> None:
    before, after = CHANGES[field]
    name = server.create(SMALLEST | {field: before})

    assert server.change(name, {field: after, "suspend": True})["spec"][field] == after


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"suspend": True}, True),
        ({"run_policy": {"backoff_limit": 0}}, {"backoff_limit": 0, "starting_deadline_seconds": 1800}),
        (
            {"run_policy": {"active_deadline_seconds": 60}},
            {"backoff_limit": 3, "active_deadline_seconds": 60, "starting_deadline_seconds": 1800},
        ),
    ],
)
def test_suspend_and_run_policy_may_change(server: Server, change: Object, value: object) -> None:
    name = server.create(SMALLEST)
    [field] = change

    changed = server.change(name, change, kept=True)

    assert changed["spec"][field] == value
    assert changed["metadata"]["generation"] == 2


def test_what_may_change_may_not_become_wrong(server: Server, smallest: str) -> None:
    with pytest.raises(ApiException) as refused:
        server.change(smallest, {"run_policy": {"backoff_limit": -1}})

    assert about("spec.run_policy.backoff_limit", problems(refused))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_kept_as_it_is_and_applying_it_again_changes_nothing(
    server: Server, example: Path
) -> None:
    manifest = read_manifest(example)
    # Two examples may have one name.
    document = job(manifest.document["spec"], a_name())
    server.apply(document)
    stored = server.read(document["metadata"]["name"])
    # The API server keeps the status by default of a job that nobody has seen with the first update.
    again, once_more = server.apply(document), server.apply(document)

    assert read_spec(stored["spec"]) == manifest.spec
    assert list(warnings(read_spec(stored["spec"]))) == list(warnings(manifest.spec))
    assert again["metadata"]["generation"] == 1
    assert once_more["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    "example",
    [path for path in EXAMPLES if "kind: FineTuneJob" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_an_example_is_to_the_servers_yaml_what_it_is_to_ours(server: Server, example: Path) -> None:
    another = example.read_text().replace("metadata:\n  name: ", "metadata:\n  name: another-")

    assert read_spec(server.try_out(another)["spec"]) == read_manifest(example).spec


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: 5E-6", "learning_rate", 5e-6),
        ("learning_rate: 1", "learning_rate", 1),
        ("weight_decay: .1", "weight_decay", 0.1),
        ("num_devices: 8.0", "num_devices", 8),
        ("min_update_steps: 1e3", "min_update_steps", 1000),
        ("context_length: 8_192", "context_length", 8192),
        ("trainer_resources: {memory: 150_323_855_360}", "trainer_resources", {"memory": 150_323_855_360}),
        ("packing: off", "packing", False),
        ("suspend: null", "suspend", False),
        ("run_policy: ~", "run_policy", {"backoff_limit": 3, "starting_deadline_seconds": 1800}),
    ],
)
def test_a_number_is_a_number_however_yaml_spells_it(
    server: Server, text: str, field: str, value: object
) -> None:
    added = f"{RIGHT}{text}".replace("\n", "\n  ")
    stored = server.try_out(
        f"apiVersion: {API_VERSION}\nkind: {KIND}\nmetadata: {{name: job}}\nspec:\n  {added}\n"
    )["spec"]

    assert stored[field] == value
    assert read_spec(stored) == spec_of(text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("num_devices: '8'", "spec.num_devices"),
        ("learning_rate: '1e-4'", "spec.learning_rate"),
        ("min_update_steps: '1_000'", "spec.min_update_steps"),
        ("trainer_resources: {memory: '150323855360'}", "spec.trainer_resources.memory"),
        ("lora_config: {r: '8'}", "spec.lora_config.r"),
    ],
)
def test_what_only_the_models_read_leniently_is_refused_until_they_have_written_it(
    server: Server, text: str, field: str
) -> None:
    spec = spec_of(text)
    with pytest.raises(ApiException) as refused:
        server.try_out(job_of(text))

    assert about(field, problems(refused))
    assert (
        read_spec(
            server.try_out(Manifest.model_validate({"metadata": {"name": "job"}, "spec": spec}).document)[
                "spec"
            ]
        )
        == spec
    )


@pytest.mark.parametrize("text", QUOTED)
def test_a_number_in_quotes_is_refused_in_a_finetunejob_by_both(
    server: Server, text: str, tmp_path: Path
) -> None:
    document = job_of(text)
    with pytest.raises(ApiException) as refused:
        server.try_out(document)
    file = tmp_path / "job.yaml"
    file.write_text(dump(document))
    with pytest.raises(FineTuneError) as told:
        read_manifest(file)

    [problem] = told.value.problems
    assert about(problem.partition(": ")[0], problems(refused)), problems(refused)


def readers(server: Server, metadata: Object, tmp_path: Path) -> tuple[bool, bool]:
    """Whether the server takes a job with these metadata, and whether `finetune validate` does."""
    document = {**job(SMALLEST), "metadata": metadata}
    file = tmp_path / "job.yaml"
    file.write_text(dump(document))
    try:
        server.try_out(document)
        by_the_server = True
    except (ApiException, ValueError):
        by_the_server = False
    try:
        read_manifest(file)
    except FineTuneError:
        return by_the_server, False
    return by_the_server, True


@pytest.mark.parametrize(
    ("metadata", "right"),
    [
        ({"generateName": "job-"}, True),
        ({"generateName": "job"}, True),
        ({"generateName": f"{'x' * 200}-"}, True),
        ({"generateName": "a.b-"}, True),
        ({"generateName": "a" + "-" * 5}, True),
        ({"generateName": "Job-"}, False),
        ({"generateName": "job."}, False),
        ({"generateName": "-"}, False),
        ({"generateName": ""}, False),
        ({}, False),
        ({"name": "a" * 253}, True),
        ({"name": "a" * 254}, False),
        ({"name": "0.1-a.b"}, True),
        ({"name": "a..b"}, False),
        ({"name": "a-"}, False),
        ({"name": "job", "finalizers": ["example.com/a"], "creationTimestamp": None}, True),
        ({"name": "job", "label": {"a": "b"}}, False),
        ({"name": "job", "namespaces": "a"}, False),
        ({"name": "job", "labels": {"example.com/a": "b", "c": ""}}, True),
        ({"name": "job", "labels": {"a": "x" * 63}}, True),
        ({"name": "job", "labels": {"a": "x" * 64}}, False),
        ({"name": "job", "labels": {"a": "b c"}}, False),
        ({"name": "job", "labels": {"a": "-b"}}, False),
        ({"name": "job", "labels": {"a/b/c": "d"}}, False),
        ({"name": "job", "labels": {"Example.com/a": "d"}}, False),
        ({"name": "job", "labels": {"x" * 64: "d"}}, False),
        ({"name": "job", "annotations": {"example.com/A_b.c": "any thing\n"}}, True),
        ({"name": "job", "annotations": {"a b": "c"}}, False),
        ({"name": "job", "annotations": {"a": "x" * 2**18}}, False),
        ({"name": "job", "annotations": {"a": "x" * (2**18 - 1)}}, True),
    ],
    ids=lambda value: str(value)[:60],
)
def test_metadata_are_right_or_wrong_for_both(
    server: Server, metadata: Object, right: bool, tmp_path: Path
) -> None:
    assert readers(server, metadata, tmp_path) == (right, right)


@pytest.mark.parametrize(
    "text",
    [
        "worker_resources: {memory: null}",
        "trainer_resources: {memory: null}",
        "liger_kernel: {kwargs: {rope: null}}",
        "lora_config: {rank_pattern: {q_proj: null}}",
        "cluster: {labels: {team: null}, node_selector: {pool: null}}",
        "cluster: {env: [{name: A, value: null}]}",
        "cluster: {affinity: {nodeAffinity: {a: [{b: null}], c: null}}}",
        "cluster: {head: {resources: {limits: {cpu: null}}, tolerations: [{key: null}]}}",
    ],
)
def test_null_in_a_map_is_absence_to_both(server: Server, text: str) -> None:
    assert read_spec(server.try_out(job_of(text))["spec"]) == spec_of(text)


@pytest.mark.parametrize("text", ["cluster: {tolerations: [null]}", "cluster: {env: [null]}"])
def test_null_in_a_list_is_right_for_nobody(server: Server, text: str) -> None:
    assert problems_of(text)
    with pytest.raises(ApiException):
        server.try_out(job_of(text))


WRITTEN: Object = json.loads(FULL.model_dump_json(by_alias=True, exclude_none=True))


def set_status(server: Server, name: str, body: Object) -> None:
    query = [("fieldValidation", "Strict")]
    server.resource.status.patch(
        name=name, namespace=server.namespace, body=body, content_type=MERGE, query_params=query
    )


def test_a_full_status_is_kept_in_full(server: Server) -> None:
    name = server.create(SMALLEST)

    set_status(server, name, {"status": WRITTEN})

    stored = server.read(name)
    assert stored["status"] == WRITTEN
    assert FineTuneJobStatus.model_validate(stored["status"]) == FULL
    assert stored["metadata"]["generation"] == 1


def test_whoever_writes_the_status_owns_all_of_it(server: Server) -> None:
    """Of each field, an owner would be more to keep than the status itself."""
    name = server.create(SMALLEST)

    set_status(server, name, {"status": WRITTEN})

    [writer] = [
        each for each in server.read(name)["metadata"]["managedFields"] if each.get("subresource") == "status"
    ]
    assert writer["fieldsV1"] == {"f:status": {}}


def test_the_largest_perplexity_there_is_comes_back_the_same(server: Server) -> None:
    name = server.create(SMALLEST)
    evaluation = Evaluation(epoch=1, loss=1000, perplexity=float("inf"))

    set_status(server, name, {"status": {"evaluation": evaluation.model_dump(mode="json", by_alias=True)}})

    assert evaluation.perplexity is not None
    assert server.read(name)["status"]["evaluation"]["perplexity"] == evaluation.perplexity > 1e308


def test_as_many_metrics_as_there_may_be_are_kept(server: Server) -> None:
    name = server.create(SMALLEST)
    longest = {metric.ljust(63, "x"): value for metric, value in MOST.items()}

    set_status(server, name, {"status": {"evaluation": WRITTEN["evaluation"] | {"metrics": longest}}})

    assert server.read(name)["status"]["evaluation"]["metrics"] == longest


@pytest.mark.parametrize("metrics", WRONG_METRICS, ids=lambda metrics: str(metrics)[:40])
def test_metrics_that_are_too_many_or_have_other_names_are_refused(
    server: Server, smallest: str, metrics: dict[str, float]
) -> None:
    with pytest.raises(ApiException) as refused:
        set_status(server, smallest, {"status": {"evaluation": WRITTEN["evaluation"] | {"metrics": metrics}}})

    assert about("status.evaluation.metrics", problems(refused)), problems(refused)


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ({"phase": "Sleeping"}, "status.phase"),
        ({"workers": {"desired": 1}}, "status.workers.ready"),
        ({"progress": WRITTEN["progress"] | {"percent": 101}}, "status.progress.percent"),
        (
            {"latestCheckpoint": WRITTEN["latestCheckpoint"] | {"name": "last"}},
            "status.latestCheckpoint.name",
        ),
        ({"startTime": "noon"}, "status.startTime"),
        ({"conditions": [WRITTEN["conditions"][0], WRITTEN["conditions"][0]]}, "status.conditions[1]"),
        ({"observed_generation": 1}, "status.observed_generation"),
    ],
    ids=lambda field: str(field)[:60],
)
def test_a_status_outside_the_contract_is_refused(
    server: Server, smallest: str, status: Object, field: str
) -> None:
    with pytest.raises(ApiException) as refused:
        set_status(server, smallest, {"status": status})

    assert about(field, problems(refused)), problems(refused)


def test_whoever_writes_the_status_cannot_write_the_spec(server: Server) -> None:
    name = server.create(SMALLEST)

    set_status(server, name, {"spec": {"suspend": True, "num_devices": 2}, "status": {"phase": "Running"}})

    stored = server.read(name)
    assert (stored["spec"]["suspend"], stored["spec"]["num_devices"], stored["status"]) == (
        False,
        1,
        UNSEEN | {"phase": "Running"},
    )


def test_whoever_writes_the_spec_cannot_write_the_status(server: Server) -> None:
    created = server.apply(job(SMALLEST, "forged") | {"status": {"phase": "Succeeded"}})
    server.resource.patch(
        name="forged", namespace=server.namespace, body={"status": {"phase": "Failed"}}, content_type=MERGE
    )

    assert created["status"] == UNSEEN
    assert server.read("forged")["status"] == UNSEEN


def test_the_columns_show_the_status(server: Server) -> None:
    name = server.create(SMALLEST)
    set_status(server, name, {"status": WRITTEN})

    accept = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    table = json.loads(
        server.resource.get(name=name, namespace=server.namespace, header_params=accept, serialize=False).data
    )

    columns = [column["name"] for column in table["columnDefinitions"]]
    shown = dict(zip(columns, table["rows"][0]["cells"], strict=True))
    assert re.fullmatch(r"\d+s", shown.pop("AGE"))
    assert shown == {
        "Name": name,
        "PHASE": "Running",
        "DEVICES": 1,
        "ACCELERATOR": "A10G",
        "EPOCH": "2/5",
        "LOSS": 2.345679,
        "EVAL-LOSS": 2.36,
        "MODEL": "m",
        "STEP": 47,
        "TOKENS/S": 206.4,
        "ETA": "2026-05-04T12:05:00Z",
        "BEST": "epoch-1",
        "ATTEMPTS": 1,
    }
