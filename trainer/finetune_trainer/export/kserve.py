"""A KServe InferenceService that serves a checkpoint by KServe's Hugging Face runtime, which runs vLLM.

Source: KServe 0.16, `config/crd/full/serving.kserve.io_inferenceservices.yaml` and
`python/huggingfaceserver`, which passes vLLM's own options on.
"""

from __future__ import annotations

from pydantic import JsonValue

from finetune_trainer.export.served import (
    Served,
    check_seen_by_a_cluster,
    must_be_merged,
    service_name,
)
from finetune_trainer.export.vllm import vllm_options

MOUNTED = "/mnt/models"
"""Where KServe's storage initializer puts what storageUri names."""
GPU: dict[str, JsonValue] = {"nvidia.com/gpu": "1"}


def inference_service(model: Served) -> dict[str, JsonValue]:
    """The manifest. KServe brings the checkpoint from `model.path`, and an adapter's base from its hub.

    Raises FineTuneError (InvalidSpec) for a checkpoint that a cluster does not see, and for an adapter of a
    base that has no name on a hub.
    """
    check_seen_by_a_cluster(model, "pvc", "s3", "gs", "hf")
    options = vllm_options(model, MOUNTED)
    if model.base is not None:
        if not model.base_on_a_hub:
            raise must_be_merged(
                model.path, f"its base model {model.base} is on no hub, where KServe takes it from"
            )
        options = [["--model_id", model.base], *options]
    # The base needs a name beside its adapter's: requests for that of the adapter would else get the base.
    called = model.name if model.base is None else f"{service_name(model)}-base"
    options = [["--model_name", called], *options]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": service_name(model)},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "huggingface"},
                    "storageUri": model.path.partition("?")[0],
                    "args": ["=".join(option) for option in options],
                    "resources": {"requests": GPU, "limits": GPU},
                }
            }
        },
    }
