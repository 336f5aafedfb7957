from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from devcluster import programs
from devcluster.failure import ClusterError
from devcluster.programs import BUILDS, find, kserve_definitions, version_of


def program(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_kubebuilders_assets_come_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset, on_path = program(tmp_path / "assets", "etcd"), program(tmp_path / "path", "etcd")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find("etcd", print) == on_path
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(asset.parent))
    assert find("etcd", print) == asset


def test_every_program_comes_from_one_build() -> None:
    names = [name for build in BUILDS for name in build.programs]
    assert len(names) == len(set(names))


def test_the_modules_go_together() -> None:
    replaced = [
        line.split()[-1]
        for line in (programs.SOURCES / "go.mod").read_text().splitlines()
        if " => k8s.io/" in line
    ]
    assert len(replaced) > 20
    assert set(replaced) == {version_of("k8s.io/kubernetes").replace("v1.", "v0.", 1)}


def test_without_go_and_without_pip_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        ClusterError,
        match=r"there is no Go 1\.25 or newer on PATH, and pip could not fetch one; install Go\n",
    ):
        find("etcd", lambda _: None)
    assert not list((tmp_path / "finetune-operator/cluster/programs").rglob("etcd"))


def test_without_room_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(programs, "DISK_NEEDED", 2**60)
    with pytest.raises(ClusterError, match=r"GiB are free; building etcd needs 1073741824 GiB"):
        find("etcd", lambda _: None)


def test_another_source_is_built_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = programs._fingerprint()
    (tmp_path / "go.mod").write_text("module other\n")
    monkeypatch.setattr(programs, "SOURCES", tmp_path)
    assert programs._fingerprint() != before
    assert hashlib.sha256(b"go.mod\0module other\n").hexdigest().startswith(programs._fingerprint())


def test_a_definition_of_another_version_than_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, version, digest = programs.KSERVE
    monkeypatch.setattr(programs, "KSERVE", (module, version, "h1:another"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with pytest.raises(ClusterError, match=f"has the digest {re.escape(digest)}, and should have h1:another"):
        kserve_definitions(lambda _: None)
