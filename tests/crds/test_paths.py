"""Where a run is, and where pods see what is mounted."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from finetune_api.paths import child, claim_of, config_map_of, mounted, parent


@pytest.mark.parametrize(
    ("directory", "inside"),
    [
        ("pvc://claim/runs", "pvc://claim/runs/team/a"),
        ("pvc://claim", "pvc://claim/team/a"),
        ("/runs/", "/runs/team/a"),
        ("s3://bucket/runs?region=eu&scheme=http", "s3://bucket/runs/team/a?region=eu&scheme=http"),
        ("/what?", "/what?/team/a"),
    ],
)
def test_what_is_in_a_directory_keeps_a_buckets_options_at_its_end(directory: str, inside: str) -> None:
    assert child(directory, "team/a") == inside
    assert parent(inside, "team/a") == directory.rstrip("/")


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("pvc://claim/data/train.jsonl", "/finetune/claims/claim/data/train.jsonl"),
        ("pvc://claim", "/finetune/claims/claim"),
        ("pvc://claim/../../etc/./passwd", "/finetune/claims/claim/etc/passwd"),
        ("configmap://rows/train.jsonl", "/finetune/config-maps/rows/train.jsonl"),
    ],
)
def test_a_mounted_path_stays_below_its_mount(path: str, inside: str) -> None:
    assert mounted(path) == PurePosixPath(inside)


@pytest.mark.parametrize(
    "path", ["s3://bucket/key", "/data/train.jsonl", "organisation/name", "hf://datasets/a/b/c"]
)
def test_other_paths_are_not_mounted(path: str) -> None:
    assert (mounted(path), claim_of(path), config_map_of(path)) == (None, None, None)
