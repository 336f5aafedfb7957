from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pytest

from devcluster.failure import ClusterError
from devcluster.images import (
    BASE,
    OPERATOR,
    RECIPES,
    ROOT,
    TRAINER,
    Docker,
    Image,
    Mirror,
    Recipe,
    archive_holds,
    base_image,
    build_image,
    context_files,
    fingerprint,
    mirror,
    write_oci_archive,
)
from devcluster.programs import Say

IMAGE = Image("localhost/finetune-trainer:0123456789ab")


@dataclass
class Shelf:
    """A builder that has images and can pull some, which is all that choosing a base may need."""

    here: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def identity(self, name: str) -> str | None:
        return name if name in self.here else None

    def pull(self, name: str) -> None:
        if name not in self.elsewhere:
            raise ClusterError(f"docker failed with exit code 1\n  {name}: no such host")
        self.here.append(name)

    def build(
        self, name: str, dockerfile: Path, context: Path, arguments: Mapping[str, str], disk: int, say: Say
    ) -> None:
        raise NotImplementedError

    def names(self, repository: str) -> list[str]:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        raise NotImplementedError

    def save(self, name: str, file: Path, known: Collection[str]) -> None:
        raise NotImplementedError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What the image is made of, and some other files."""
    recipe = [[each.dockerfile, each.ignore_file, *context_files(each, ROOT)] for each in RECIPES.values()]
    for path in (*chain.from_iterable(recipe), Path("locks/dev.txt"), Path("docs/design.md")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    return tmp_path


def layer(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def store(storage: Path, layers: list[dict[str, bytes]]) -> tuple[bytes, bytes]:
    """Keeps layers as buildah does, and returns a manifest and a configuration of them."""
    listed, described = [], []
    for number, files in enumerate(layers):
        content = layer(files)
        directory = storage / "overlay" / str(number) / "diff"
        entries: list[dict[str, object]] = []
        rest = content
        for name, text in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(text)
            between, rest = rest.split(text, 1)
            entries += [
                {"type": 2, "payload": base64.b64encode(between).decode()},
                {"type": 1, "name": name, "size": len(text)},
            ]
        entries.append({"type": 2, "payload": base64.b64encode(rest).decode()})
        (storage / "overlay-layers").mkdir(exist_ok=True)
        with gzip.open(storage / "overlay-layers" / f"{number}.tar-split.gz", "wt") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
        listed.append({"id": str(number), "diff-digest": digest_of(content)})
        described.append(
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest_of(content),
                "size": len(content),
            }
        )
    (storage / "overlay-layers" / "layers.json").write_text(json.dumps(listed))
    config = json.dumps({"rootfs": {"diff_ids": [each["digest"] for each in described]}}).encode()
    manifest = {
        "schemaVersion": 2,
        "config": {"digest": digest_of(config), "size": len(config)},
        "layers": described,
    }
    return json.dumps(manifest).encode(), config


def archived(
    archive: Path, storage: Path, layers: list[dict[str, bytes]], known: Collection[str] = ()
) -> dict[str, bytes]:
    """Writes an archive of layers, and returns its content by digest."""
    manifest, config = store(storage, layers)
    with archive.open("wb") as out:
        write_oci_archive(out, IMAGE.name, manifest, config, storage, known)
    blobs = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            blobs[member.name.removeprefix("blobs/").replace("/", ":")] = file.read()
    return blobs


@pytest.mark.parametrize(
    ("recipe", "path"),
    [
        *(
            (TRAINER, path)
            for path in (
                "images/trainer.Dockerfile",
                "images/trainer.Dockerfile.dockerignore",
                "locks/image.txt",
            )
        ),
        *(
            (OPERATOR, path)
            for path in (
                "images/operator.Dockerfile",
                "images/operator.Dockerfile.dockerignore",
                "locks/operator.txt",
            )
        ),
        *(
            (recipe, path)
            for recipe in RECIPES.values()
            for path in ("locks/build.txt", "pyproject.toml", "crds/finetune_api/crd.py")
        ),
        (TRAINER, "trainer/finetune_trainer/training/loop.py"),
        (OPERATOR, "operator/finetune_operator/__main__.py"),
    ],
    ids=str,
)
def test_the_name_changes_with_what_the_image_is_made_of(repository: Path, recipe: Recipe, path: str) -> None:
    before = fingerprint(recipe, repository, "base")

    with (repository / path).open("a") as file:
        file.write("\n")

    assert fingerprint(recipe, repository, "base") != before


def test_the_name_changes_with_the_base_and_with_the_name_of_a_file(repository: Path) -> None:
    before = fingerprint(TRAINER, repository, "base")
    assert fingerprint(TRAINER, repository, "another base") != before

    (repository / "cli/finetune_cli/main.py").rename(repository / "cli/finetune_cli/another.py")

    assert fingerprint(TRAINER, repository, "base") != before


@pytest.mark.parametrize(
    ("recipe", "others"),
    [(TRAINER, "operator/finetune_operator"), (OPERATOR, "trainer/finetune_trainer")],
    ids=["trainer", "operator"],
)
def test_the_name_stays_when_other_files_change(repository: Path, recipe: Recipe, others: str) -> None:
    before = fingerprint(recipe, repository, "base")

    for path in (
        "locks/dev.txt",
        "docs/design.md",
        "notes.txt",
        "cli/another/file.py",
        "crds/finetune_api/__pycache__/crd.pyc",
        f"{others}/a.py",
    ):
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text("changed")

    assert fingerprint(recipe, repository, "base") == before
    assert fingerprint(recipe, ROOT, "base") == before


def test_an_archive_holds_an_image_with_its_layers(tmp_path: Path) -> None:
    layers = [
        {"etc/os-release": b"Debian", "usr/bin/true": b"\x7fELF" * 1000},
        {"opt/venv/pyvenv.cfg": b"home"},
    ]

    blobs = archived(tmp_path / "image.tar", tmp_path, layers)

    [entry] = json.loads(blobs["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == IMAGE.name
    manifest = json.loads(blobs[entry["digest"]])
    assert [blobs[each["digest"]] for each in manifest["layers"]] == [layer(files) for files in layers]
    assert all(digest_of(blob) == digest for digest, blob in blobs.items() if digest.startswith("sha256:"))
    assert archive_holds(tmp_path / "image.tar", IMAGE)


def test_an_archive_without_known_layers_is_none_of_the_whole_image(tmp_path: Path) -> None:
    layers = [{"etc/os-release": b"Debian"}, {"opt/venv/pyvenv.cfg": b"home"}]
    known = digest_of(layer(layers[0]))

    blobs = archived(tmp_path / "image.tar", tmp_path, layers, {known})

    assert known not in blobs
    assert digest_of(layer(layers[1])) in blobs
    assert not archive_holds(tmp_path / "image.tar", IMAGE)


def test_an_archive_of_another_image_or_of_none_does_not_hold_it(tmp_path: Path) -> None:
    archived(tmp_path / "image.tar", tmp_path, [{"etc/os-release": b"Debian"}])
    (tmp_path / "broken.tar").write_bytes((tmp_path / "image.tar").read_bytes()[:700])

    assert not archive_holds(tmp_path / "image.tar", Image("localhost/finetune-trainer:0123456789a"))
    assert not archive_holds(tmp_path / "broken.tar", IMAGE)
    assert not archive_holds(tmp_path / "absent.tar", IMAGE)


@pytest.mark.parametrize("content", [b"Debiam", b"Debian GNU/Linux", None], ids=["changed", "longer", "gone"])
def test_a_layer_that_is_not_as_it_was_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    manifest, config = store(tmp_path, [{"etc/os-release": b"Debian"}])
    file = tmp_path / "overlay/0/diff/etc/os-release"
    file.write_bytes(content) if content is not None else file.unlink()

    with pytest.raises(
        ClusterError,
        match=rf"^{tmp_path}: layer sha256:\w+ of {IMAGE.name} cannot be read; remove {tmp_path.parent}: ",
    ):
        write_oci_archive(io.BytesIO(), IMAGE.name, manifest, config, tmp_path, ())


def test_a_base_that_is_named_is_pulled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BASE, "registry.test/debian:1")
    shelf = Shelf(elsewhere=["registry.test/debian:1"])

    assert base_image(shelf, print) == "registry.test/debian:1"

    shelf.elsewhere.clear()
    assert base_image(shelf, print) == "registry.test/debian:1"


def test_the_base_is_the_one_of_the_dockerfile_where_it_can_be_pulled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(BASE, raising=False)
    [public] = re.findall(r"^ARG BASE=(.+)$", (ROOT / TRAINER.dockerfile).read_text(), re.MULTILINE)

    assert base_image(Shelf(elsewhere=[public]), print) == public


def test_without_a_registry_and_without_debootstrap_an_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(BASE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []

    with pytest.raises(
        ClusterError, match=rf"apt-get install buildah debootstrap, or name an image in {BASE}$"
    ):
        base_image(Shelf(), said.append)

    assert "no such host" in said[-1]


def test_without_a_builder_an_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    with pytest.raises(
        ClusterError,
        match=(
            r"^building .* needs Docker.*: apt-get install buildah debootstrap$|; start Docker or run this as"
            r" root$"
        ),
    ):
        build_image(TRAINER, print)


def test_a_command_that_fails_shows_its_last_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(
        "#!/bin/sh\nfor line in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do echo line $line >&2; done; exit 3\n"
    )
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    with pytest.raises(ClusterError) as raised:
        Docker().pull("debian")

    assert str(raised.value).splitlines() == [
        "docker failed with exit code 3",
        *(f"  line {number}" for number in range(3, 15)),
    ]


def test_the_mirror_is_the_one_that_apt_has_for_the_release() -> None:
    targets = (
        "nodistro https://other.test/node main\n"
        "bookworm https://other.test/tools contrib\n"
        "bookworm http://debian.test/debian/ main\n"
        "bookworm http://debian.test/debian/ contrib\n"
        "bookworm-updates http://debian.test/debian/ main\n"
    )

    assert mirror(targets, "bookworm") == Mirror("http://debian.test/debian/", ("main", "contrib"))
    with pytest.raises(ClusterError, match=rf"^apt has no source for trixie; .* in {BASE}$"):
        mirror(targets, "trixie")
