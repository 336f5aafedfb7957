from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.trainer.export.serving import adapter_in, job_in, model_in, refused
from tests.trainer.export.test_served import FORMAT, some_model

from finetune_api.failure import FineTuneError
from finetune_trainer.export.rayservice import ray_service, requested_name
from finetune_trainer.export.served import Served, served

AT = "s3://bucket/runs/default/my-job-0123456789/epoch-1"


def llm_config(model: Served) -> dict[str, Any]:
    spec: Any = ray_service(model)["spec"]
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    [config] = application["args"]["llm_configs"]
    assert isinstance(config, dict)
    return config


@pytest.fixture
def adapter(tmp_path: Path) -> Served:
    directory = adapter_in(tmp_path / "run/epoch-1")
    job_in(tmp_path / "run", dtype="bf16", context_length=2048)
    return served(str(directory), at=AT)


@pytest.fixture
def merged(tmp_path: Path) -> Served:
    return served(str(model_in(tmp_path / "merged")), at="pvc://models/merged")


def test_kuberays_own_schema_takes_an_adapter_and_a_whole_model(
    adapter: Served, merged: Served, kuberay_definitions: Path
) -> None:
    definition = kuberay_definitions / "ray.io_rayservices.yaml"

    assert refused(definition, ray_service(adapter)) == []
    assert refused(definition, ray_service(merged, image="registry/ray-llm:mine")) == []


def test_its_schema_refuses_what_is_wrong(merged: Served, kuberay_definitions: Path) -> None:
    manifest: Any = ray_service(merged)
    manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].pop("groupName")
    manifest["spec"]["serveConfig"] = {}

    assert set(refused(kuberay_definitions / "ray.io_rayservices.yaml", manifest)) == {
        ".spec.serveConfig: is unknown",
        ".spec.rayClusterConfig.workerGroupSpecs[0].groupName: is required",
    }


def test_an_adapter_is_found_by_ray_in_the_directory_that_has_it(adapter: Served) -> None:
    assert llm_config(adapter) == {
        "model_loading_config": {"model_id": "my-job", "model_source": "org/base"},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        "lora_config": {"dynamic_lora_loading_path": "s3://bucket/runs/default/my-job-0123456789"},
        "engine_kwargs": {
            "dtype": "bfloat16",
            "max_model_len": 2048,
            "enable_lora": True,
            "max_lora_rank": 8,
        },
    }
    assert requested_name(adapter) == "my-job:epoch-1"


def test_a_whole_model_on_a_claim_is_mounted_in_all_pods(merged: Served) -> None:
    cluster: Any = ray_service(merged)["spec"]
    pods = [
        cluster["rayClusterConfig"]["headGroupSpec"]["template"]["spec"],
        cluster["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"],
    ]

    for pod in pods:
        [volume], [container] = pod["volumes"], pod["containers"]
        assert volume["persistentVolumeClaim"] == {"claimName": "models"}
        [mount] = container["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/mnt/models")
    assert llm_config(merged)["model_loading_config"]["model_source"] == "/mnt/models/merged"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("s3://b/m?region=r", {"bucket_uri": "s3://b/m"}),
        ("gs://b/m/", {"bucket_uri": "gs://b/m"}),
        ("hf://o/m", "o/m"),
    ],
)
def test_a_whole_model_elsewhere_is_brought_by_ray(path: str, source: object) -> None:
    assert llm_config(some_model(path=path))["model_loading_config"]["model_source"] == source


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": "pvc://c/a"}, "Ray Serve takes adapters from s3:// and gs:// only"),
        ({"base": "/models/base"}, "its base model /models/base is on no hub"),
        ({"own_format": True}, "it was trained on a format of its own"),
    ],
)
def test_an_adapter_that_ray_does_not_take_is_to_be_merged(fields: dict[str, object], said: str) -> None:
    model = some_model(**{"path": AT, "base": "org/base", "max_rank": 8, **fields})

    with pytest.raises(FineTuneError) as raised:
        ray_service(model)

    assert said in str(raised.value)
    assert "merge it, `finetune merge CHECKPOINT OUT`, and serve OUT" in str(raised.value)


def test_an_adapter_with_a_format_of_its_own_is_read_as_such(tmp_path: Path) -> None:
    directory = adapter_in(tmp_path / "run/epoch-1")
    job_in(tmp_path / "run", generation_config=FORMAT)

    with pytest.raises(FineTuneError, match="a format of its own"):
        ray_service(served(str(directory), at=AT))
