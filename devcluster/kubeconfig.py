"""Files by which clients find a cluster and say who they are."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import yaml

from devcluster.certificates import KeyPair, write_secret

CONTEXT = "finetune-test"


def write_kubeconfig(path: Path, *, server: str, authority: Path, client: KeyPair) -> Path:
    """Everything is in the file itself; only its owner can read it."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": CONTEXT, "cluster": {"server": server, "certificate-authority-data": _inline(authority)}}
        ],
        "users": [
            {
                "name": CONTEXT,
                "user": {
                    "client-certificate-data": _inline(client.certificate),
                    "client-key-data": _inline(client.key),
                },
            }
        ],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
        "current-context": CONTEXT,
    }
    write_secret(path, yaml.safe_dump(config).encode())
    return path


def _inline(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()
