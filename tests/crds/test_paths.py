"""Where a run is, and where pods see what is mounted."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from finetune_api.paths import (
    child,
    claim_of,
    config_map_of,
    mounted,
    parent,
    run_directory_name,
    storage_of,
)


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
    assert parent(inside, "team/a") == storage_of(inside) == directory.rstrip("/")


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


LONGEST_NAMES = {"one label": "a" * 253, "labels": ".".join(["a" * 49] * 5), "hyphens": "a" + "-" * 251 + "a"}
UIDS = ("0b5f2c5e-6a56-4d0e-9b1c-3f3a5f1f2d11", "1b5f2c5e-6a56-4d0e-9b1c-3f3a5f1f2d11")


@pytest.mark.parametrize("name", LONGEST_NAMES.values(), ids=LONGEST_NAMES)
@pytest.mark.parametrize("uid", [UIDS[0], "0123456789"], ids=["on a cluster", "on one machine"])
def test_a_run_of_the_longest_name_is_a_directory_that_can_be_made(
    name: str, uid: str, tmp_path: Path
) -> None:
    directory = tmp_path / run_directory_name("n" * 63, name, uid)
    directory.mkdir(parents=True)

    assert directory.name.endswith(f"-{uid}")
    assert directory.name.startswith(name[:200])


def test_two_jobs_of_the_longest_names_have_a_directory_each() -> None:
    names = {run_directory_name("team", f"{'a' * 250}{end}", uid) for end in ("-a", "-b") for uid in UIDS}

    assert len(names) == len(UIDS)


def test_the_name_of_a_run_is_the_jobs() -> None:
    assert run_directory_name("team", "a" * 200, UIDS[0]) == f"team/{'a' * 200}-{UIDS[0]}"
