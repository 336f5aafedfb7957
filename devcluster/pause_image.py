"""The image that containerd starts each pod with, one layer with one program, made without a builder."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

from devcluster.cache import cache_directory

PAUSE_IMAGE = "localhost/finetune-pause:1"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def pause_archive(program: Path) -> Path:
    """An archive of PAUSE_IMAGE, in the format of `docker save`, with a statically linked program."""
    content = program.read_bytes()
    archive = cache_directory() / "images" / f"pause-{hashlib.sha256(content).hexdigest()[:12]}.tar"
    if not archive.exists():
        layer = _tar({"pause": (content, 0o755)})
        config = {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
        files = {
            "config.json": json.dumps(config).encode(),
            "layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(".partial")
        partial.write_bytes(_tar({name: (data, 0o644) for name, data in files.items()}))
        partial.replace(archive)
    return archive


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, (data, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()
