"""Pods of the trainer's image, as they run where `restricted` is enforced."""

from __future__ import annotations

from pydantic import JsonValue


def pod_spec(
    image: str, name: str = "worker", command: list[JsonValue] | None = None
) -> dict[str, JsonValue]:
    """A pod that fits `restricted`, with a container called `name`."""
    container: dict[str, JsonValue] = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        **({"command": command} if command else {}),
        "env": [
            {"name": "RAY_TRAIN_V2_ENABLED", "value": "1"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "home", "mountPath": "/home/ray"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "containers": [container],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "home", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 5,
    }
