"""Finds the claims and config maps that are mounted in this pod."""

from __future__ import annotations

from pathlib import Path

from finetune_api.paths import claim_mount, claim_of, config_map_mount, config_map_of, mounted


def mounted_here(path: str) -> Path | None:
    """The local path of a mounted `pvc://` or `configmap://` path; None for all other paths."""
    claim, config_map, inside = claim_of(path), config_map_of(path), mounted(path)
    if inside is None:
        return None
    root = claim_mount(claim) if claim is not None else config_map_mount(config_map or "")
    return Path(inside) if Path(root).is_dir() else None
