"""RayJobs for tests of the cluster itself, with the trainer's image, where `restricted` is enforced."""

from __future__ import annotations

import json

from pydantic import JsonValue

from devcluster.pods import pod_spec

ACCELERATOR = "accelerator_type:A10G"
SERVICE = "workers"
"""A headless service: its name has the addresses of all workers."""

SCRIPT = f"""
import os, socket, time
import torch
import torch.distributed as dist
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
import finetune_trainer.training.loop


def train(config):
    rank = dist.get_rank()
    mine = socket.gethostbyname(socket.gethostname())
    addresses = [None, None]
    dist.all_gather_object(addresses, mine)
    deadline = time.monotonic() + 60
    while True:
        try:
            found = {{each[4][0] for each in socket.getaddrinfo(config["service"], 80, socket.AF_INET)}}
        except socket.gaierror:
            found = set()
        if found == set(addresses) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert len(found) == 2 and found == set(addresses), (found, addresses)
    total = torch.tensor([1.0 + rank])
    dist.all_reduce(total)
    assert total.item() == 3.0
    print(f"worker {{rank}} at {{mine}} sees {{sorted(found)}}", flush=True)
    time.sleep(config["seconds"])


ray.init()
print("resources", ray.cluster_resources())
TorchTrainer(
    train,
    train_loop_config={{"service": os.environ["WORKERS"], "seconds": float(os.environ["SECONDS_TO_TRAIN"])}},
    scaling_config=ScalingConfig(
        num_workers=2,
        resources_per_worker={{"CPU": 1, "{ACCELERATOR}": 0.001}},
        placement_strategy="STRICT_SPREAD",
    ),
    run_config=RunConfig(storage_path="/tmp/results"),
).fit()
print("trained")
"""


def workers_service(namespace: str) -> dict[str, JsonValue]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": namespace},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"ray.io/node-type": "worker"},
        },
    }


def ray_job(name: str, namespace: str, image: str, *, seconds: float = 0) -> dict[str, JsonValue]:
    """Two workers that find each other by DNS and add their ranks up, and then stay for so many seconds."""
    worker: dict[str, JsonValue] = {
        "groupName": "workers",
        "replicas": 2,
        "minReplicas": 2,
        "maxReplicas": 2,
        "rayStartParams": {"num-cpus": "1", "resources": json.dumps(json.dumps({ACCELERATOR: 1}))},
        "template": {"spec": pod_spec(image)},
    }
    environment: dict[str, JsonValue] = {
        "WORKERS": f"{SERVICE}.{namespace}.svc.cluster.local",
        "SECONDS_TO_TRAIN": str(seconds),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "entrypoint": f"python -c {_quoted(SCRIPT)}",
            "entrypointNumCpus": 0,
            "runtimeEnvYAML": json.dumps({"env_vars": environment}),
            "shutdownAfterJobFinishes": False,
            "submitterPodTemplate": {"spec": {**pod_spec(image, name="submitter"), "restartPolicy": "Never"}},
            "rayClusterSpec": {
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "1", "dashboard-host": "0.0.0.0"},
                    "template": {"spec": pod_spec(image, name="head")},
                },
                "workerGroupSpecs": [worker],
            },
        },
    }


def _quoted(script: str) -> str:
    """For a POSIX shell."""
    return "'" + script.replace("'", "'\"'\"'") + "'"
