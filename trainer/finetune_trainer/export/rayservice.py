"""A KubeRay RayService that serves a checkpoint by Ray Serve's `ray.serve.llm`, which runs vLLM.

Source: KubeRay 1.6, `config/crd/bases/ray.io_rayservices.yaml`; Ray 2.52, `ray.serve.llm.LLMConfig`.
"""

from __future__ import annotations

import posixpath

from pydantic import JsonValue

from finetune_api.fields import scheme
from finetune_api.paths import claim_of
from finetune_api.yaml_text import dump
from finetune_trainer.export.served import (
    Served,
    check_seen_by_a_cluster,
    must_be_merged,
    service_name,
)

RAY = "2.52.0"
IMAGE = f"rayproject/ray-llm:{RAY}-py311-cu128"
"""The image of KubeRay's own sample of `ray.serve.llm`, which has vLLM."""
MOUNTED = "/mnt/models"

Json = dict[str, JsonValue]


def ray_service(model: Served, image: str = IMAGE) -> Json:
    """The manifest: a head without a device, and a worker with one.

    An adapter is asked for as `MODEL:ADAPTER` (see `requested_name`). Raises FineTuneError (InvalidSpec) for
    a checkpoint that a cluster does not see, and for an adapter that Ray Serve does not take as it is.
    """
    claim = claim_of(model.path)
    check_seen_by_a_cluster(model, "s3", "gs", "pvc", "hf")
    application: Json = {
        "name": "llm",
        "import_path": "ray.serve.llm:build_openai_app",
        "route_prefix": "/",
        "args": {"llm_configs": [_llm_config(model)]},
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": service_name(model)},
        "spec": {
            "serveConfigV2": dump({"applications": [application]}),
            "rayClusterConfig": {
                "rayVersion": RAY,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _pod("ray-head", image, {"cpu": "2", "memory": "8Gi"}, claim),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "gpu",
                        "replicas": 1,
                        "minReplicas": 1,
                        "maxReplicas": 1,
                        "rayStartParams": {},
                        "template": _pod(
                            "ray-worker", image, {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}, claim
                        ),
                    }
                ],
            },
        },
    }


def requested_name(model: Served) -> str:
    """What requests to Ray Serve call the model: an adapter by its base and its directory."""
    return model.name if model.base is None else f"{model.name}:{posixpath.basename(_directory(model))}"


def _directory(model: Served) -> str:
    return model.path.partition("?")[0].rstrip("/")


def _llm_config(model: Served) -> Json:
    engine: Json = {}
    if model.dtype is not None:
        engine["dtype"] = model.dtype
    if model.context_length is not None:
        engine["max_model_len"] = model.context_length
    config: Json = {
        "model_loading_config": {"model_id": model.name, "model_source": _source(model)},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
    }
    if model.base is not None:
        if scheme(model.path) not in ("s3", "gs"):
            raise must_be_merged(model.path, "Ray Serve takes adapters from s3:// and gs:// only")
        if not model.base_on_a_hub:
            raise must_be_merged(
                model.path, f"its base model {model.base} is on no hub, where Ray takes it from"
            )
        if model.own_format:
            raise must_be_merged(
                model.path,
                "it was trained on a format of its own (spec.generation_config), and of an adapter Ray"
                " Serve takes the weights alone, not where answers end",
            )
        config["lora_config"] = {"dynamic_lora_loading_path": posixpath.dirname(_directory(model))}
        engine |= {"enable_lora": True, "max_lora_rank": model.max_rank}
    if engine:
        config["engine_kwargs"] = engine
    return config


def _source(model: Served) -> JsonValue:
    """Where Ray takes the whole model, or the base of an adapter, from."""
    if model.base is not None:
        return model.base
    if scheme(model.path) == "hf":
        return model.path.removeprefix("hf://")
    if scheme(model.path) == "pvc":
        return f"{MOUNTED}/{_directory(model).removeprefix('pvc://').partition('/')[2]}".rstrip("/")
    return {"bucket_uri": _directory(model)}


def _pod(container: str, image: str, resources: Json, claim: str | None) -> Json:
    spec: Json = {
        "name": container,
        "image": image,
        "resources": {"requests": resources, "limits": resources},
    }
    if claim is None:
        return {"spec": {"containers": [spec]}}
    spec["volumeMounts"] = [{"name": "models", "mountPath": MOUNTED, "readOnly": True}]
    volume: Json = {"name": "models", "persistentVolumeClaim": {"claimName": claim}}
    return {"spec": {"containers": [spec], "volumes": [volume]}}
