"""`spec` of a FineTuneJob: an LLMForge training YAML, word for word, and a few fields of our own.

The models check each field by itself; what fields say together is checked in `consistency`.
Sources of names, types and defaults: Anyscale's fine-tuning config reference and its public templates.
"""

from __future__ import annotations

import math
import sys
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Tag
from pydantic_core import PydanticCustomError

from finetune_api.accelerators import ResourceAmounts, WorkerResources, accelerator_types
from finetune_api.cluster import Cluster, RunPolicy, Storage
from finetune_api.fields import (
    Amount,
    CheckpointPath,
    DataPath,
    Flag,
    Integer,
    JsonObject,
    LongText,
    ModelPath,
    Number,
    ShortText,
    SpecModel,
    StoragePath,
    TextList,
    UnbuiltBlock,
    UnreadBlock,
    one_of,
)
from finetune_api.generation import GenerationConfig
from finetune_api.lora import LoraConfig
from finetune_api.names import Form
from finetune_api.status import MOST_EPOCHS, MOST_KEPT_CHECKPOINTS

Task = Literal[
    "causal_lm", "instruction_tuning", "classification", "preference_tuning", "vision_language_tuning"
]
BuiltTask = Literal["causal_lm", "instruction_tuning", "classification", "preference_tuning"]
ClassificationMetric = Literal[
    "accuracy", "balanced_accuracy", "f1", "precision", "recall", "prauc", "roc_auc", "matthews_corrcoef"
]
Scheduler = Literal["cosine", "linear", "constant"]
BatchSize = Annotated[Integer, Field(ge=1, le=65536)]
Steps = Annotated[Integer, Field(ge=0, le=10**9)]
Epochs = Annotated[Integer, Field(ge=1, le=MOST_EPOCHS)]


def _finite(value: object) -> object:
    # `.inf` stands in public files, and JSON has no infinity.
    return sys.float_info.max if value == math.inf else value


def _different(labels: list[str]) -> list[str]:
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise PydanticCustomError(
            "labels", "must be different, has {twice} twice", {"twice": ", ".join(twice)}
        )
    return labels


MOST_PROMPTS = 16
"""That are asked for samples of answers."""
Prompts = Annotated[list[LongText], Field(min_length=1, max_length=MOST_PROMPTS)]
PromptCount = Annotated[Integer, Field(ge=1, le=MOST_PROMPTS)]
SamplePrompts = Annotated[
    Annotated[Prompts, Tag("list")] | Annotated[PromptCount, Tag("number")],
    one_of("a list of texts, or a number of validation rows"),
]

_WORD = "[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*"
HubName = Annotated[
    str,
    Field(max_length=192, json_schema_extra={"pattern": f"^{_WORD}/{_WORD}$"}),
    AfterValidator(Form(f"{_WORD}/{_WORD}", "must be OWNER/NAME, as models of a hub are called").check),
]

Label = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^\S(.*\S)?$")]


class CheckpointFrequency(SpecModel):
    """How often the model is validated and saved (LLMForge 0.5.8)."""

    unit: Literal["epochs"] = "epochs"
    """Epochs are the only unit."""
    frequency: Epochs
    """Every so many epochs."""


class DeepSpeed(SpecModel):
    """A DeepSpeed configuration."""

    config_path: DataPath
    """Its JSON file. ZeRO's stage and offload in it, or in its name where it cannot be read, are taken as
    parallelism and cpu_offload."""


class LigerKernel(SpecModel):
    """Liger's kernels, which compute parts of a model on GPUs."""

    enabled: Flag = True
    """False leaves the model as it is."""
    kwargs: Annotated[dict[ShortText, Flag], Field(max_length=32)] | None = None
    """Which of them, true or false by Liger's names: `rms_norm`, `rope`, `swiglu` and what else it has for
    the model's architecture. By default all that Liger itself turns on; its losses have no effect."""


class TorchCompile(SpecModel):
    """Arguments of `torch.compile`."""

    enabled: Flag = True
    """False leaves the model as it is."""
    backend: ShortText | None = None
    """The compiler; default: PyTorch's inductor."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    """What the compiler spends time on."""
    dynamic: Flag | None = None
    """Compile for changing lengths; by default PyTorch finds out by itself."""
    fullgraph: Flag = False
    """Fail when a layer cannot be compiled as a whole."""


class Classifier(SpecModel):
    """A model that answers with one of a few labels (LLMForge's LLM classifier)."""

    label_tokens: Annotated[list[Label], Field(min_length=2, max_length=1000), AfterValidator(_different)]
    """The labels: what the last answer of every row is, one of them alone. Each is one token."""
    eval_metrics: Annotated[tuple[ClassificationMetric, ...], Field(min_length=1, max_length=16)] = (
        "accuracy",
        "f1",
        "prauc",
    )
    """What is measured on the validation rows, with scikit-learn's functions; means over the labels."""


class PreferenceTuning(SpecModel):
    """Direct preference optimisation (Rafailov et al. 2023), which makes preferred answers likelier."""

    beta: Annotated[Number, Field(gt=0, le=1000)] = 0.1
    """How strongly the model is held to what it was before training."""
    logprob_processor_scaling_config: JsonObject | None = None
    """LLMForge's workers for the model as it was. No effect: those that train compute what it says, once."""


class DataSource(SpecModel):
    """A part of the training rows."""

    path: DataPath
    """As `train_path`."""
    weight: Annotated[Number, Field(gt=0, le=1000)] | None = None
    """How often its rows are in an epoch: 2 is twice, 0.5 a half of them, which `seed` chooses."""
    rows: Annotated[Integer, Field(ge=1, le=10**9)] | None = None
    """How many of its rows are in an epoch, which `seed` chooses; beyond their number they are repeated."""


TrainPath = Annotated[
    Annotated[DataPath, Tag("text")]
    | Annotated[Annotated[list[DataSource], Field(min_length=1, max_length=64)], Tag("list")],
    one_of("a path or a list of {path: ..., weight: ...} or {path: ..., rows: ...}"),
]


class DataColumns(SpecModel):
    """The rows' own names of keys, or of columns. Those of one form of rows."""

    messages: ShortText | None = None
    """A conversation: messages with `role` and `content`."""
    conversations: ShortText | None = None
    """A conversation in ShareGPT's form: turns with `from` and `value`."""
    instruction: ShortText | None = None
    """What is asked, in Alpaca's form."""
    input: ShortText | None = None
    """What the instruction is about, in Alpaca's form."""
    output: ShortText | None = None
    """The answer, in Alpaca's form."""
    prompt: ShortText | None = None
    """What is asked, beside `completion` or `chosen` and `rejected`."""
    completion: ShortText | None = None
    """What follows a prompt."""
    text: ShortText | None = None
    """Plain text."""
    chosen: ShortText | None = None
    """The preferred answer."""
    rejected: ShortText | None = None
    """The other answer."""
    system: ShortText | None = None
    """The system message, in Alpaca's and ShareGPT's form."""
    tools: ShortText | None = None
    """Definitions of the tools that may be called."""


class LoggerConfig(SpecModel):
    """Settings of the tracker, each of which is for one of them."""

    project: ShortText | None = None
    """wandb: project; `llmforge` is LLMForge's default and ours."""
    group: ShortText | None = None
    """wandb: group; default: the model id."""
    name: ShortText | None = None
    """wandb: name of the run; default: custom_model_tag, else the job's name."""
    tags: TextList | None = None
    """wandb: tags."""
    tracking_uri: LongText | None = None
    """mlflow: where the server or the store is."""
    experiment_name: ShortText | None = None
    """mlflow: experiment."""
    create_experiment_if_not_exists: Flag | None = None
    """mlflow: make the experiment when it is not there; default: true."""
    log_dir: LongText | None = None
    """tensorboard: a directory that gets a folder for the run; default: `tensorboard` in the run's own."""


class Logger(SpecModel):
    """An experiment tracker that gets the same numbers as metrics.jsonl."""

    provider: Literal["wandb", "mlflow", "tensorboard"]
    """Which tracker."""
    provider_config: LoggerConfig = LoggerConfig()
    """Its settings."""
    rank_zero_only: Flag = True
    """Only the first worker reports; the others have nothing else to say."""


class Output(SpecModel):
    """Where the best checkpoint goes when the run has finished, besides storage."""

    push_to_hub: HubName
    """A repository of the hub, OWNER/NAME: made if it is not there, private. The token is HF_TOKEN of the
    environment."""
    merge: Flag = False
    """Push the adapter merged into its base model, in place of the adapter."""
    public: Flag = False
    """Make a new repository for all to see, and write to one that is."""


class FineTuneJobSpec(SpecModel):
    """What to train, on what, and how. `model_id`, `train_path` and `lora_config: {}` are enough."""

    # The model
    model_id: ModelPath
    """A model on the hub (`organisation/name`) or a path to one."""
    initial_base_model_ckpt_path: CheckpointPath | None = None
    """Take the base model's weights from here."""
    initial_adapter_model_ckpt_path: CheckpointPath | None = None
    """Start from this adapter; lora_config must fit it."""
    resume_from: StoragePath | None = None
    """Go on from a run's directory, or from one of its checkpoints, with optimizer, random state and order of
    rows; num_epochs and max_steps count from the beginning of that run."""

    # The data
    train_path: TrainPath
    """Training rows: JSON lines, a JSON array, CSV or Parquet; a file, a directory, a pattern or a data set
    of the hub. A row is a conversation (`messages`), or for preference_tuning a pair (`chosen`, `rejected`);
    docs/data.md has the other forms. Or a list of `{path: ..., weight: ...}` and `{path: ..., rows: ...}`,
    which are mixed."""
    valid_path: DataPath | None = None
    """Validation rows: a path as in train_path."""
    valid_fraction: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Hold out so much of the training rows for validation, in place of valid_path; a hash of each row
    decides."""
    data_columns: DataColumns | None = None
    """The rows' own names of keys, such as `{prompt: question, completion: answer}`."""
    eval_path: DataPath | None = None
    """An early name of valid_path."""
    task: Task | None = None
    """`causal_lm` (the default) trains on all tokens, `instruction_tuning` on the assistant's,
    `preference_tuning` on pairs of answers, `classification` on the label that is the last answer; these two
    are the default with their blocks, preference_tuning_config and classifier_config."""
    generation_config: GenerationConfig | None = None
    """How a conversation becomes text; default: the tokenizer's own chat template."""
    preference_tuning_config: PreferenceTuning | None = None
    """How preferences are learnt."""
    classifier_config: Classifier | None = None
    """Which labels are learnt."""
    context_length: Annotated[Integer, Field(ge=8, le=16_777_216)] | None = None
    """Longest sequence in tokens; longer rows are truncated. Derived from the data by default."""
    padding: Literal["longest", "max_length"] = "longest"
    """`longest`: rows of a micro-batch are laid end to end, without padding, or are padded to the longest one
    where the architecture asks for it; `max_length`: padded to context_length."""
    packing: Flag = False
    """Fill sequences of context_length with several rows each, which do not see each other; batches are of
    sequences then."""

    # The devices
    num_devices: Annotated[Integer, Field(ge=1, le=4096)] = 1
    """Workers, one accelerator each."""
    worker_resources: WorkerResources | None = None
    """What each worker asks for: `accelerator_type:A10G: 0.001`, `anyscale/accelerator_shape:4xA10G: 0.001`
    or a machine, `g5.12xlarge: 0.01`; `memory` in bytes."""
    trainer_resources: ResourceAmounts | None = None
    """What the first worker asks for besides: `memory` in bytes, since it gathers the weights."""

    # Batches and steps
    train_batch_size_per_device: BatchSize | None = None
    """Rows of a micro-batch."""
    eval_batch_size_per_device: BatchSize | None = None
    """Rows of a validation batch."""
    gradient_accumulation_steps: Annotated[Integer, Field(ge=1, le=65536)] = 1
    """Micro-batches of an optimizer step."""
    num_epochs: Epochs | None = None
    """Epochs; derived from min_update_steps by default."""
    min_update_steps: Annotated[Steps, Field(ge=1)] | None = None
    """Optimizer steps that a run without num_epochs has at least; default: 100."""
    min_num_update_steps: Annotated[Steps, Field(ge=1)] | None = None
    """The other spelling of min_update_steps."""
    max_steps: Annotated[Steps, Field(ge=1)] | None = None
    """Optimizer steps after which the run ends, also in the middle of an epoch, whatever num_epochs is."""

    # The optimizer
    learning_rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Peak learning rate; default: 1e-4 for LoRA and 1e-5 for full-parameter training."""
    lr_scheduler_type: Scheduler = "cosine"
    """What follows the warm-up."""
    num_warmup_steps: Steps | None = None
    """Steps of linear warm-up; default: 10."""
    weight_decay: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[Number, Field(gt=0, le=1e9)] = 1.0
    """Gradients with a larger L2 norm are scaled down to it."""
    seed: Annotated[Integer, Field(ge=0, le=2**32 - 1)] = 42
    """Seed of the row order, new weights and dropout."""

    # Validation and checkpoints
    checkpoint_every_n_epochs: Epochs | None = None
    """Validate and save after every so many epochs."""
    max_num_checkpoints: Annotated[Integer, Field(ge=1, le=MOST_EPOCHS)] | None = None
    """Validate and save at most so many times."""
    checkpoint_and_evaluation_frequency: CheckpointFrequency | None = None
    """The newer form of checkpoint_every_n_epochs."""
    num_checkpoints_to_keep: Annotated[Integer, Field(ge=1, le=MOST_KEPT_CHECKPOINTS)] = 1
    """Checkpoints that stay: those with the lowest validation loss."""
    eval_first: Flag = False
    """Validate once before training."""
    eval_steps: Annotated[Steps, Field(ge=1)] | None = None
    """Validate after every so many steps too, without a checkpoint."""
    early_stopping_patience: Epochs | None = None
    """End the run when so many checkpoints in a row have no lower validation loss than one before them."""
    sample_prompts: SamplePrompts | None = None
    """Questions that the model answers before training and with each checkpoint: at most 16 texts, or of so
    many validation rows, of valid_path or held out by valid_fraction, the first ones, what stands before the
    last answer."""
    sample_max_tokens: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Longest of these answers in tokens; default: 64."""

    # How the model is trained
    lora_config: LoraConfig | None = None
    """Train low-rank adapters. Without it every parameter is trained."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the arithmetic; `auto` is bf16 on GPUs and fp32 on CPUs."""
    export_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the weights in a full model's checkpoints; `auto` is the base model's."""
    parallelism: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices share the work: a copy of the model on each (`ddp`), or a part of it (`fsdp`);
    `auto` takes copies where they fit."""
    cpu_offload: Flag | None = None
    """With fsdp: keep weights and optimizer state in the host's memory."""
    quantization: Literal["nf4"] | None = None
    """Hold the frozen base model in 4 bits (QLoRA)."""
    gradient_checkpointing: Flag | None = None
    """Recompute activations instead of keeping them; by default only where memory would not suffice."""
    no_gradient_checkpoint: Flag | None = None
    """The older, inverted spelling of gradient_checkpointing."""
    flash_attention_2: Flag | None = None
    """Use the flash-attn package on GPUs; by default PyTorch's own attention is used."""
    torch_compile: TorchCompile | None = None
    """Compile the model's layers, each by itself."""
    deepspeed: DeepSpeed | None = None
    """LLMForge's choice of parallelism; where spec has parallelism or cpu_offload, these win."""
    liger_kernel: LigerKernel | None = None
    """Have Liger's kernels compute parts of the model on GPUs."""

    # What is written where
    storage: Storage | None = None
    """Where runs go on a cluster; the operator's configuration has a default."""
    output: Output | None = None
    """What becomes of the best checkpoint at the end of the run."""
    logger: Logger | None = None
    """An experiment tracker."""
    custom_model_tag: ShortText | None = None
    """A name for the tuned model; trackers show it as the run's name."""
    model_tag: ShortText | None = None
    """An early name of custom_model_tag."""
    output_dir: LongText | None = None
    """LLMForge's scratch directory."""
    num_data_blocks_per_device: Annotated[Integer, Field(ge=1, le=10**9)] | None = None
    dataset_size_scaling_factor: Annotated[Amount, Field(gt=0), BeforeValidator(_finite)] | None = None

    forward_checkpoint_config: UnreadBlock | None = None
    """Where early LLMForge copied adapters besides."""
    webhook_config: UnreadBlock | None = None
    """Where early LLMForge registered the tuned model."""

    # A task that is not built yet
    vision_language_config: UnbuiltBlock | None = None

    # The run
    suspend: Flag = False
    """Give the devices back and keep the checkpoints; set to false, the job resumes from them."""
    run_policy: RunPolicy = RunPolicy()
    """How long and how often the job is tried on a cluster."""
    cluster: Cluster | None = None
    """What the pods look like."""

    @property
    def trained_task(self) -> BuiltTask:
        """The task, by default that of a block which is given, else `causal_lm`.

        `consistency` refuses the task that is not built.
        """
        if self.task is None and self.preference_tuning_config is not None:
            return "preference_tuning"
        if self.task is None and self.classifier_config is not None:
            return "classification"
        if self.task is None or self.task == "vision_language_tuning":
            return "causal_lm"
        return self.task

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """`train_path` as a list."""
        if isinstance(self.train_path, str):
            return (DataSource(path=self.train_path),)
        return tuple(self.train_path)

    @property
    def data_paths(self) -> tuple[str, ...]:
        """Where rows are read: the training rows, and the validation rows if they have a path."""
        return (*(source.path for source in self.sources), *([self.valid_path] if self.valid_path else []))

    @property
    def columns(self) -> dict[str, str]:
        """The rows' own names of keys, by the names of `data_columns`."""
        return {} if self.data_columns is None else self.data_columns.model_dump(exclude_none=True)

    @property
    def validates(self) -> bool:
        """Whether there are validation rows."""
        return self.valid_path is not None or self.valid_fraction is not None

    @property
    def preferences(self) -> PreferenceTuning:
        """How preferences are learnt, where that is the task."""
        return self.preference_tuning_config or PreferenceTuning()

    @property
    def compiles_layers(self) -> bool:
        """Whether `torch_compile` is asked for."""
        return self.torch_compile is not None and self.torch_compile.enabled

    @property
    def liger_switches(self) -> dict[str, bool] | None:
        """What is said of Liger's kernels, by name; None where none is used.

        None is used beside `torch_compile`, see `consistency`.
        """
        if self.liger_kernel is None or not self.liger_kernel.enabled or self.compiles_layers:
            return None
        return self.liger_kernel.kwargs or {}

    @property
    def recomputes_activations(self) -> bool | None:
        """`gradient_checkpointing` or its inverted older spelling; None leaves it to what fits."""
        if self.no_gradient_checkpoint is not None:
            return not self.no_gradient_checkpoint
        return self.gradient_checkpointing

    @property
    def minimum_steps(self) -> int | None:
        """`min_update_steps` in either spelling."""
        return self.min_update_steps if self.min_update_steps is not None else self.min_num_update_steps

    @property
    def longest_sample(self) -> int:
        """The tokens that an answer to `sample_prompts` has at most."""
        return self.sample_max_tokens or 64

    @property
    def checkpoint_interval(self) -> int | None:
        """Epochs between checkpoints, where the spec says so in either form."""
        if self.checkpoint_and_evaluation_frequency is not None:
            return self.checkpoint_and_evaluation_frequency.frequency
        return self.checkpoint_every_n_epochs

    @property
    def accelerator_types(self) -> list[str]:
        """Accelerator types that worker_resources names, each once: `["A10G"]`; one at most."""
        return accelerator_types(self.worker_resources or {})
