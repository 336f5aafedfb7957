"""Claims and config maps as they are mounted in a cluster's pods."""

from __future__ import annotations

from pathlib import Path

from finetune_api.paths import claim_mount, claim_of, config_map_mount, config_map_of, mounted


def mounted_here(path: str) -> Path | None:
    """Where a `pvc://` or `configmap://` path is in this pod; None where its claim or config map is not mounted, and of other paths."""
    claim, config_map, inside = claim_of(path), config_map_of(path), mounted(path)
    if inside is None:
        return None
    root = claim_mount(claim) if claim is not None else config_map_mount(config_map or "")
    return Path(inside) if Path(root).is_dir() else None
