"""Mistakes in a spec, as people write them, and the message for each."""

from __future__ import annotations

RIGHT = "model_id: m\ntrain_path: t.jsonl\n"
"""A right spec, to which each mistake is added."""

DATA_PATH = (
    "must be a plain path, s3://BUCKET/path, gs://BUCKET/path, hf://datasets/OWNER/NAME/FILE,"
    " pvc://CLAIM/path, configmap://NAME/KEY or file:///path"
)
MODEL_PATH = (
    "must be a plain path, s3://BUCKET/path, gs://BUCKET/path, hf://OWNER/NAME,"
    " pvc://CLAIM/path or file:///path"
)
STORAGE_PATH = "must be a plain path, s3://BUCKET/path, gs://BUCKET/path, pvc://CLAIM/path or file:///path"
QUANTITY = "must be a quantity such as 2, 500m or 16Gi"
NEEDS_DATA = "needs a pass over the data before training, which is not supported yet; leave it out"
NEEDS_GPTQ = "needs a base that GPTQ has quantized, which is not supported; leave it out"
NEEDS_WHOLE_BASE = "needs the base in full, not in 4 bits; take true, false or gaussian"
ONE_OF_THEM = "leave it or spec.quantization out"
NEEDS_LOSS = "adds a term to the loss, which is not supported yet; leave it out"
TASKS = "'causal_lm', 'instruction_tuning', 'classification', 'preference_tuning' or 'vision_language_tuning'"

WRONG_FIELDS = [
    # Numbers
    ("num_devices: 0", "spec.num_devices: must be at least 1, is 0"),
    ("num_devices: 5000", "spec.num_devices: must be at most 4096, is 5000"),
    ("num_devices: 1.5", "spec.num_devices: must be a whole number, is 1.5"),
    ("num_devices: two", "spec.num_devices: must be a whole number, is 'two'"),
    ("num_devices: true", "spec.num_devices: must be a number, is true"),
    ("num_devices: [1]", "spec.num_devices: must be a whole number, is a list"),
    ("num_devices: {count: 1}", "spec.num_devices: must be a whole number, is a map"),
    ("num_devices: 1" + "0" * 30, "spec.num_devices: must be at most 4096, is 1" + "0" * 30),
    ("num_epochs: 0", "spec.num_epochs: must be at least 1, is 0"),
    ("num_epochs: -3", "spec.num_epochs: must be at least 1, is -3"),
    ("num_epochs: .inf", "spec.num_epochs: must be a number, is inf"),
    ("min_update_steps: 0", "spec.min_update_steps: must be at least 1, is 0"),
    ("max_steps: 0", "spec.max_steps: must be at least 1, is 0"),
    ("max_steps: 1e10", "spec.max_steps: must be at most 1000000000, is 10000000000.0"),
    ("eval_steps: 0", "spec.eval_steps: must be at least 1, is 0"),
    ("eval_steps: 0.1", "spec.eval_steps: must be a whole number, is 0.1"),
    (
        "valid_path: v\nearly_stopping_patience: 0",
        "spec.early_stopping_patience: must be at least 1, is 0",
    ),
    ("num_warmup_steps: -1", "spec.num_warmup_steps: must be at least 0, is -1"),
    ("context_length: 4", "spec.context_length: must be at least 8, is 4"),
    ("context_length: auto", "spec.context_length: must be a whole number, is 'auto'"),
    ("train_batch_size_per_device: 0", "spec.train_batch_size_per_device: must be at least 1, is 0"),
    ("eval_batch_size_per_device: 0", "spec.eval_batch_size_per_device: must be at least 1, is 0"),
    ("gradient_accumulation_steps: 0", "spec.gradient_accumulation_steps: must be at least 1, is 0"),
    ("learning_rate: 0", "spec.learning_rate: must be more than 0, is 0"),
    ("learning_rate: -1e-4", "spec.learning_rate: must be more than 0, is -0.0001"),
    ("learning_rate: 1.5", "spec.learning_rate: must be at most 1, is 1.5"),
    ("learning_rate: .nan", "spec.learning_rate: must be a number, is nan"),
    ("learning_rate: 1e-4f", "spec.learning_rate: must be a number, is '1e-4f'"),
    ("weight_decay: -0.1", "spec.weight_decay: must be at least 0, is -0.1"),
    ("max_grad_norm: 0", "spec.max_grad_norm: must be more than 0, is 0"),
    ("seed: -1", "spec.seed: must be at least 0, is -1"),
    ("checkpoint_every_n_epochs: 0", "spec.checkpoint_every_n_epochs: must be at least 1, is 0"),
    ("max_num_checkpoints: 0", "spec.max_num_checkpoints: must be at least 1, is 0"),
    ("num_checkpoints_to_keep: 0", "spec.num_checkpoints_to_keep: must be at least 1, is 0"),
    ("num_checkpoints_to_keep: 1001", "spec.num_checkpoints_to_keep: must be at most 1000, is 1001"),
    # Choices, switches, texts
    ("task: dpo", f"spec.task: must be {TASKS}, is 'dpo'"),
    (
        "lr_scheduler_type: polynomial",
        "spec.lr_scheduler_type: must be 'cosine', 'linear' or 'constant', is 'polynomial'",
    ),
    ("padding: true", "spec.padding: must be 'longest' or 'max_length', is true"),
    ("dtype: fp16", "spec.dtype: must be 'auto', 'bf16' or 'fp32', is 'fp16'"),
    ("parallelism: zero3", "spec.parallelism: must be 'auto', 'ddp' or 'fsdp', is 'zero3'"),
    (
        "sample_prompts: What?",
        "spec.sample_prompts: must be a list of texts, or a number of validation rows, is 'What?'",
    ),
    ("sample_prompts: 17", "spec.sample_prompts: must be at most 16, is 17"),
    ("sample_prompts: []", "spec.sample_prompts: must have at least 1 entries, has 0"),
    ("sample_prompts: [a, 5]", "spec.sample_prompts[1]: must be a text, is 5; put it in quotes"),
    ("sample_max_tokens: 1025", "spec.sample_max_tokens: must be at most 1024, is 1025"),
    ("eval_first: 1", "spec.eval_first: must be true or false, is 1"),
    ('flash_attention_2: "true"', "spec.flash_attention_2: must be true or false, is 'true'"),
    ("custom_model_tag: 5", "spec.custom_model_tag: must be a text, is 5; put it in quotes"),
    ("custom_model_tag: on", "spec.custom_model_tag: must be a text, is true; put it in quotes"),
    ('custom_model_tag: ""', "spec.custom_model_tag: must not be empty"),
    ("custom_model_tag: " + "x" * 257, "spec.custom_model_tag: must have at most 256 characters"),
    ("custom_model_tag: {a: 1}", "spec.custom_model_tag: must be a text, is a map"),
    # Paths
    ('model_id: ""', "spec.model_id: must not be empty"),
    ("model_id: https://huggingface.co/m", f"spec.model_id: {MODEL_PATH}, is 'https://huggingface.co/m'"),
    ("model_id: configmap://name/key", f"spec.model_id: {MODEL_PATH}, is 'configmap://name/key'"),
    ("train_path:", "spec.train_path: is required"),
    ("train_path: [a]", "spec.train_path[0]: must be a map of fields, is 'a'"),
    (
        "train_path: 5",
        (
            "spec.train_path: must be a path or a list of {path: ..., weight: ...} or {path: ..., rows: ...},"
            " is 5"
        ),
    ),
    ("train_path: []", "spec.train_path: must have at least 1 entries, has 0"),
    ("train_path: [{path: a, weight: 0}]", "spec.train_path[0].weight: must be more than 0, is 0"),
    ("train_path: [{path: a, rows: 0}]", "spec.train_path[0].rows: must be at least 1, is 0"),
    ("train_path: [{path: a, share: 2}]", "spec.train_path[0].share: is not a known field"),
    ("valid_fraction: 0", "spec.valid_fraction: must be more than 0, is 0"),
    ("valid_fraction: 1", "spec.valid_fraction: must be less than 1, is 1"),
    ("train_path: S3://bucket/t.jsonl", f"spec.train_path: {DATA_PATH}, is 'S3://bucket/t.jsonl'"),
    ("train_path: s3:///t.jsonl", f"spec.train_path: {DATA_PATH}, is 's3:///t.jsonl'"),
    ("train_path: hf://owner/name/t.jsonl", f"spec.train_path: {DATA_PATH}, is 'hf://owner/name/t.jsonl'"),
    ("valid_path: pvc://Claim/v.jsonl", f"spec.valid_path: {DATA_PATH}, is 'pvc://Claim/v.jsonl'"),
    ("valid_path: configmap://rows", f"spec.valid_path: {DATA_PATH}, is 'configmap://rows'"),
    ("valid_path: " + "v" * 4097, "spec.valid_path: must have at most 4096 characters"),
    ("resume_from: hf://owner/name", f"spec.resume_from: {STORAGE_PATH}, is 'hf://owner/name'"),
    ('resume_from: ""', "spec.resume_from: must not be empty"),
    ("storage: {path: hf://owner/name}", f"spec.storage.path: {STORAGE_PATH}, is 'hf://owner/name'"),
    ("output: {}", "spec.output.push_to_hub: is required"),
    ("output: {push_to_hub: true}", "spec.output.push_to_hub: must be a text, is true; put it in quotes"),
    *(
        (
            f"output: {{push_to_hub: {name}}}",
            f"spec.output.push_to_hub: must be OWNER/NAME, as models of a hub are called, is {name!r}",
        )
        for name in ("tuned", "someone/", "a/b/c", "someone/two words", "hf://someone/tuned", "someone/a..b")
    ),
    (
        "output: {push_to_hub: someone/tuned, private: true}",
        "spec.output.private: is not a known field",
    ),
    ("storage: s3://bucket", "spec.storage: must be a map of fields, is 's3://bucket'"),
    (
        "initial_base_model_ckpt_path: 5",
        "spec.initial_base_model_ckpt_path: must be a path or {repo_id: organisation/name}, is 5",
    ),
    (
        "initial_base_model_ckpt_path: [a]",
        "spec.initial_base_model_ckpt_path: must be a path or {repo_id: organisation/name}, is a list",
    ),
    ("initial_base_model_ckpt_path: {}", "spec.initial_base_model_ckpt_path.repo_id: is required"),
    (
        "initial_base_model_ckpt_path: awsv2://x",
        f"spec.initial_base_model_ckpt_path: {MODEL_PATH}, is 'awsv2://x'",
    ),
    # Maps and lists
    ("worker_resources: [memory]", "spec.worker_resources: must be a map of fields, is a list"),
    ("worker_resources: {memory: 0}", "spec.worker_resources.memory: must be more than 0, is 0"),
    ("worker_resources: {memory: 70Gi}", "spec.worker_resources.memory: must be a number, is '70Gi'"),
    (
        "worker_resources: {'accelerator_type:A10G': 0}",
        "spec.worker_resources[accelerator_type:A10G]: must be more than 0, is 0",
    ),
    (
        "checkpoint_and_evaluation_frequency: 5",
        "spec.checkpoint_and_evaluation_frequency: must be a map of fields, is 5",
    ),
    (
        "checkpoint_and_evaluation_frequency: {}",
        "spec.checkpoint_and_evaluation_frequency.frequency: is required",
    ),
    (
        "checkpoint_and_evaluation_frequency: {unit: steps, frequency: 5}",
        "spec.checkpoint_and_evaluation_frequency.unit: must be 'epochs', is 'steps'",
    ),
    ("deepspeed: {}", "spec.deepspeed.config_path: is required"),
    (
        "deepspeed: {config_path: 'pvc://Claim/z.json'}",
        f"spec.deepspeed.config_path: {DATA_PATH}, is 'pvc://Claim/z.json'",
    ),
    ("torch_compile: true", "spec.torch_compile: must be a map of fields, is true"),
    ("cluster: {affinity: {a: .inf}}", "spec.cluster.affinity.a: must be a number, is inf"),
    ("liger_kernel: {kwargs: {rope: 1}}", "spec.liger_kernel.kwargs.rope: must be true or false, is 1"),
    (
        "logger: {provider: comet}",
        "spec.logger.provider: must be 'wandb', 'mlflow' or 'tensorboard', is 'comet'",
    ),
    (
        "logger: {provider: wandb, provider_config: {tags: [a, 2]}}",
        "spec.logger.provider_config.tags[1]: must be a text, is 2; put it in quotes",
    ),
    (
        "generation_config: {prompt_format: {user: '{instruction}', assistant: '{instruction}'}}",
        "spec.generation_config.prompt_format.system: is required",
    ),
    (
        "generation_config: {stopping_sequences: stop}",
        "spec.generation_config.stopping_sequences: must be a list, is 'stop'",
    ),
    ("run_policy: {backoff_limit: -1}", "spec.run_policy.backoff_limit: must be at least 0, is -1"),
    (
        "run_policy: {active_deadline_seconds: 1h}",
        "spec.run_policy.active_deadline_seconds: must be a whole number, is '1h'",
    ),
    ("cluster: {env: {HF_TOKEN: x}}", "spec.cluster.env: must be a list, is a map"),
    ("cluster: {env: [HF_TOKEN]}", "spec.cluster.env[0]: must be a map of fields, is 'HF_TOKEN'"),
    (
        "cluster: {image_pull_policy: always}",
        "spec.cluster.image_pull_policy: must be 'Always', 'IfNotPresent' or 'Never', is 'always'",
    ),
    ("cluster: {image_pull_secrets: [{}]}", "spec.cluster.image_pull_secrets[0].name: is required"),
    (
        "cluster: {node_selector: {gpu: true}}",
        "spec.cluster.node_selector.gpu: must be a text, is true; put it in quotes",
    ),
    (
        "cluster: {worker: {resources: {requests: {memory: 16 GB}}}}",
        f"spec.cluster.worker.resources.requests.memory: {QUANTITY}, is '16 GB'",
    ),
    (
        "cluster: {worker: {resources: {limits: {cpu: -1}}}}",
        f"spec.cluster.worker.resources.limits.cpu: {QUANTITY}, is -1",
    ),
    (
        "cluster: {head: {resources: {limits: {cpu: true}}}}",
        f"spec.cluster.head.resources.limits.cpu: {QUANTITY}, is true",
    ),
    # LoRA
    ("lora_config: true", "spec.lora_config: must be a map of fields, is true"),
    ("lora_config: {r: 0}", "spec.lora_config.r: must be at least 1, is 0"),
    ("lora_config: {r: 8.5}", "spec.lora_config.r: must be a whole number, is 8.5"),
    ("lora_config: {lora_dropout: 1}", "spec.lora_config.lora_dropout: must be less than 1, is 1"),
    (
        "lora_config: {target_modules: 5}",
        "spec.lora_config.target_modules: must be a text or a list of texts, is 5",
    ),
    (
        "lora_config: {target_modules: [q_proj, 5]}",
        "spec.lora_config.target_modules[1]: must be a text, is 5; put it in quotes",
    ),
    ("lora_config: {target_modules: ''}", "spec.lora_config.target_modules: must not be empty"),
    ("lora_config: {bias: both}", "spec.lora_config.bias: must be 'none', 'all' or 'lora_only', is 'both'"),
    ("lora_config: {task_type: SEQ_CLS}", "spec.lora_config.task_type: must be 'CAUSAL_LM', is 'SEQ_CLS'"),
    (
        "lora_config: {init_lora_weights: gausian}",
        (
            "spec.lora_config.init_lora_weights: must be true, false or one of gaussian, olora, pissa,"
            " orthogonal, mica, is 'gausian'"
        ),
    ),
    (
        "lora_config: {init_lora_weights: 1}",
        (
            "spec.lora_config.init_lora_weights: must be true, false or one of gaussian, olora, pissa,"
            " orthogonal, mica, is 1"
        ),
    ),
    (
        "lora_config: {layers_to_transform: all}",
        "spec.lora_config.layers_to_transform: must be a layer's index or a list of them, is 'all'",
    ),
    (
        "lora_config: {layers_to_transform: [0, -1]}",
        "spec.lora_config.layers_to_transform[1]: must be at least 0, is -1",
    ),
    (
        "lora_config: {layer_replication: [[0, 4], [2]]}",
        "spec.lora_config.layer_replication[1]: must have at least 2 entries, has 1",
    ),
    (
        "lora_config: {rank_pattern: {q_proj: 0}}",
        "spec.lora_config.rank_pattern.q_proj: must be at least 1, is 0",
    ),
    (
        "lora_config: {trainable_token_indices: 5}",
        (
            "spec.lora_config.trainable_token_indices: must be a list of token ids, or a map from modules to"
            " such lists, is 5"
        ),
    ),
    (
        "lora_config: {modules_to_save: lm_head}",
        "spec.lora_config.modules_to_save: must be a list, is 'lm_head'",
    ),
    # Unknown keys
    ("learning_rte: 1e-4", "spec.learning_rte: is not a known field; did you mean learning_rate?"),
    ("loraConfig: {}", "spec.loraConfig: is not a known field; did you mean lora_config?"),
    (
        "batch_size: 8",
        (
            "spec.batch_size: is not a known field; did you mean train_batch_size_per_device or"
            " eval_batch_size_per_device?"
        ),
    ),
    ("epochs: 3", "spec.epochs: is not a known field; did you mean num_epochs or checkpoint_every_n_epochs?"),
    ("torch_compile: {modes: default}", "spec.torch_compile.modes: is not a known field; did you mean mode?"),
    ("customModelTag: mine", "spec.customModelTag: is not a known field; did you mean custom_model_tag?"),
    ("val_path: v.jsonl", "spec.val_path: is not a known field; did you mean valid_path?"),
    ("xyz: 1", "spec.xyz: is not a known field"),
    ("r: 8", "spec.r: is not a known field; did you mean spec.lora_config.r?"),
    ("image: trainer:1", "spec.image: is not a known field; did you mean spec.cluster.image?"),
    (
        "lora_config: {num_epochs: 3}",
        "spec.lora_config.num_epochs: is not a known field; did you mean spec.num_epochs?",
    ),
    # Fields of other tools
    (
        "lora_config: {rank: 8}",
        "spec.lora_config.rank: is not a known field; did you mean spec.lora_config.r?",
    ),
    ("lora_r: 8", "spec.lora_r: is not a known field; did you mean spec.lora_config.r?"),
    ("datasets: [a.jsonl]", "spec.datasets: is not a known field; did you mean spec.train_path?"),
    ("val_size: 0.1", "spec.val_size: is not a known field; did you mean spec.valid_path?"),
    ("save_steps: 10", "spec.save_steps: is not a known field; did you mean spec.checkpoint_every_n_epochs?"),
    (
        "load_in_4bit: true",
        "spec.load_in_4bit: is not a known field; spec.quantization: nf4 holds the base model in 4 bits",
    ),
    ("'a key/with spaces': 1", "spec[a key/with spaces]: is not a known field"),
    ("lora_config: {unknown: null}", "spec.lora_config.unknown: is not a known field"),
]
"""Mistakes in one field: YAML, and the one line that names the field and says what would be right."""

CONTRADICTIONS = [
    (
        "sample_prompts: 2",
        "spec.sample_prompts: as a number needs spec.valid_path or spec.valid_fraction; or list the prompts",
    ),
    (
        "eval_path: a\nvalid_path: a",
        "spec.eval_path: means the same as spec.valid_path, which is set as well; keep one of them",
    ),
    (
        "model_tag: mine\ncustom_model_tag: yours",
        "spec.model_tag: means the same as spec.custom_model_tag, which is set as well; keep one of them",
    ),
    (
        "min_update_steps: 5\nmin_num_update_steps: 5",
        (
            "spec.min_num_update_steps: means the same as spec.min_update_steps, which is set as well; keep"
            " one of them"
        ),
    ),
    (
        "max_steps: 50\nmin_num_update_steps: 5",
        ("spec.max_steps: says how long the run is, and so does spec.min_update_steps; keep one of them"),
    ),
    (
        "early_stopping_patience: 2",
        (
            "spec.early_stopping_patience: needs spec.valid_path or spec.valid_fraction: it is the validation"
            " loss that decides"
        ),
    ),
    (
        "gradient_checkpointing: false\nno_gradient_checkpoint: true",
        (
            "spec.no_gradient_checkpoint: means the same as spec.gradient_checkpointing, which is set as"
            " well; keep one of them"
        ),
    ),
    (
        "checkpoint_every_n_epochs: 2\ncheckpoint_and_evaluation_frequency: {frequency: 2}",
        (
            "spec.checkpoint_every_n_epochs: means the same as spec.checkpoint_and_evaluation_frequency,"
            " which is set as well; keep one of them"
        ),
    ),
    (
        "valid_path: a\nvalid_fraction: 0.1",
        "spec.valid_fraction: is one way to validate and spec.valid_path another; keep one of them",
    ),
    (
        "train_path: [{path: a, weight: 2, rows: 3}]",
        "spec.train_path[0].rows: is one way to say how many rows and weight another; keep one",
    ),
    (
        "data_columns: {prompt: a, output: b}",
        (
            "spec.data_columns: has output, prompt, which are not of one form of rows for the task causal_lm;"
            " those are messages, tools; conversations, system, tools; instruction, output, input, system;"
            " prompt, completion, tools; text"
        ),
    ),
    (
        "task: preference_tuning\ndata_columns: {messages: dialog}",
        (
            "spec.data_columns: has messages, which are not of one form of rows for the task"
            " preference_tuning; those are chosen, rejected, prompt"
        ),
    ),
    (
        "data_columns: {prompt: a, completion: a}",
        "spec.data_columns: gives a to two keys; give each a column of its own",
    ),
    ("task: classification", "spec.task: classification needs spec.classifier_config with its label_tokens"),
    (
        "task: vision_language_tuning",
        (
            "spec.task: is not supported yet; causal_lm, instruction_tuning, classification and"
            " preference_tuning are"
        ),
    ),
    (
        "task: causal_lm\nclassifier_config: {label_tokens: [a, b]}",
        "spec.classifier_config: is of the task classification, spec.task is another; keep one of them",
    ),
    (
        "preference_tuning_config: {beta: 0.01}\nclassifier_config: {label_tokens: [a, b]}",
        (
            "spec.classifier_config: is of another task than spec.preference_tuning_config, which is set too;"
            " keep one of them"
        ),
    ),
    (
        "classifier_config: {label_tokens: [a, b]}\nlora_config: {trainable_token_indices: [5]}",
        (
            "spec.lora_config.trainable_token_indices: is for tokens that spec.classifier_config chooses;"
            " leave it out"
        ),
    ),
    (
        "task: causal_lm\npreference_tuning_config: {beta: 0.01}",
        (
            "spec.preference_tuning_config: is of the task preference_tuning, spec.task is another; keep one"
            " of them"
        ),
    ),
    (
        "packing: true\npreference_tuning_config: {beta: 0.01}",
        "spec.packing: fills sequences with rows, and pairs of answers are compared; leave it out",
    ),
    (
        "packing: true\ntask: preference_tuning",
        "spec.packing: fills sequences with rows, and pairs of answers are compared; leave it out",
    ),
    (
        "vision_language_config: {}",
        (
            "spec.vision_language_config: asks for the task vision_language_tuning, which is not supported"
            " yet; causal_lm, instruction_tuning, classification and preference_tuning are"
        ),
    ),
    (
        "packing: true\npadding: max_length",
        "spec.packing: fills sequences, and spec.padding is max_length, which pads rows; keep one of them",
    ),
    (
        "parallelism: ddp\ncpu_offload: true",
        "spec.cpu_offload: needs spec.parallelism: fsdp or auto, is true with ddp; keep one of them",
    ),
    (
        "quantization: nf4",
        (
            "spec.quantization: needs spec.lora_config: weights of 4 bits cannot be trained; add lora_config:"
            " {} for LoRA"
        ),
    ),
    (
        "output: {push_to_hub: someone/tuned, merge: true}",
        (
            "spec.output.merge: merges an adapter, and without spec.lora_config a whole model is trained;"
            " leave it out"
        ),
    ),
    (
        "initial_adapter_model_ckpt_path: a",
        (
            "spec.initial_adapter_model_ckpt_path: needs spec.lora_config; without it every parameter is"
            " trained and there is no adapter"
        ),
    ),
    (
        "logger: {provider: wandb, provider_config: {experiment_name: x}}",
        (
            "spec.logger.provider_config.experiment_name: belongs to mlflow, and the provider is another;"
            " leave it out"
        ),
    ),
    (
        "logger: {provider: mlflow, provider_config: {tags: [x]}}",
        "spec.logger.provider_config.tags: belongs to wandb, and the provider is another; leave it out",
    ),
    (
        "logger: {provider: mlflow, provider_config: {project: x}}",
        "spec.logger.provider_config.project: belongs to wandb, and the provider is another; leave it out",
    ),
    (
        "logger: {provider: mlflow, provider_config: {group: x}}",
        "spec.logger.provider_config.group: belongs to wandb, and the provider is another; leave it out",
    ),
    (
        "logger: {provider: mlflow, provider_config: {name: x}}",
        "spec.logger.provider_config.name: belongs to wandb, and the provider is another; leave it out",
    ),
    (
        "logger: {provider: wandb, provider_config: {tracking_uri: x}}",
        (
            "spec.logger.provider_config.tracking_uri: belongs to mlflow, and the provider is another; leave"
            " it out"
        ),
    ),
    (
        "logger: {provider: wandb, provider_config: {create_experiment_if_not_exists: true}}",
        (
            "spec.logger.provider_config.create_experiment_if_not_exists:"
            " belongs to mlflow, and the provider is another; leave it out"
        ),
    ),
    (
        "logger: {provider: mlflow, provider_config: {log_dir: x}}",
        (
            "spec.logger.provider_config.log_dir: belongs to tensorboard, and the provider is another; leave"
            " it out"
        ),
    ),
    (
        "lora_config: {eva_config: {rho: 1.0}}",
        f"spec.lora_config.eva_config: {NEEDS_DATA}",
    ),
    (
        "lora_config: {corda_config: {}}",
        f"spec.lora_config.corda_config: {NEEDS_DATA}",
    ),
    (
        "lora_config: {lora_ga_config: {}}",
        f"spec.lora_config.lora_ga_config: {NEEDS_DATA}",
    ),
    (
        "lora_config: {megatron_config: {a: 1}}",
        "spec.lora_config.megatron_config: is for Megatron's layers, which are not supported; leave it out",
    ),
    (
        "lora_config: {arrow_config: {}}",
        "spec.lora_config.arrow_config: routes between adapters that are trained already; leave it out",
    ),
    (
        "lora_config: {monteclora_config: {}}",
        f"spec.lora_config.monteclora_config: {NEEDS_LOSS}",
    ),
    ("lora_config: {kasa_config: {}}", f"spec.lora_config.kasa_config: {NEEDS_LOSS}"),
    (
        "lora_config: {use_qalora: true}",
        f"spec.lora_config.use_qalora: {NEEDS_GPTQ}",
    ),
    (
        "lora_config: {inference_mode: true}",
        "spec.lora_config.inference_mode: would leave the adapter untrained; leave it out",
    ),
    *(
        (
            f"quantization: nf4\nlora_config: {{init_lora_weights: {name}}}",
            f"spec.lora_config.init_lora_weights: {name} {NEEDS_WHOLE_BASE}",
        )
        for name in ("olora", "pissa", "orthogonal", "mica")
    ),
    (
        "quantization: nf4\nlora_config: {velora_config: {}}",
        f"spec.lora_config.velora_config: is not there for layers in 4 bits; {ONE_OF_THEM}",
    ),
    (
        "quantization: nf4\nlora_config: {use_bdlora: {}}",
        f"spec.lora_config.use_bdlora: would be ignored by layers in 4 bits; {ONE_OF_THEM}",
    ),
    (
        "lora_config: {lora_bias: true, use_dora: true}",
        "spec.lora_config.lora_bias: does not go with spec.lora_config.use_dora; keep one of them",
    ),
]
"""Fields that contradict each other or ask for what is not built, and the line for the first of them."""

_NAME = "must name a type, as in accelerator_type:A10G or anyscale/accelerator_shape:4xA10G"
_AMOUNT = (
    "an accelerator's amount must be more than 0 and at most 1,"
    " since each worker gets one device whatever it says"
)

WRONG_ACCELERATORS = [
    ("{'accelerator_type:A10G': 2}", f"{_AMOUNT}; accelerator_type:A10G is 2"),
    ("{'anyscale/accelerator_shape:4xA10G': 1.5}", f"{_AMOUNT}; anyscale/accelerator_shape:4xA10G is 1.5"),
    ("{'accelerator_type:': 1}", f"{_NAME}; accelerator_type: does not"),
    ("{'anyscale/accelerator_shape:A10G': 1}", f"{_NAME}; anyscale/accelerator_shape:A10G does not"),
    ("{'anyscale/accelerator_shape:0xA10G': 1}", f"{_NAME}; anyscale/accelerator_shape:0xA10G does not"),
    (
        "{'accelerator_type:A10G': 1, 'accelerator_type:L4': 1}",
        "must name one accelerator type, names A10G and L4",
    ),
    (
        "{'accelerator_type:L4': 1, 'anyscale/accelerator_shape:4xA10G': 1}",
        "must name one accelerator type, names L4 and A10G",
    ),
]
"""`worker_resources`, and what is wrong with them."""
