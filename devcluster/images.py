"""Builds the container images from their Dockerfiles, for a cluster here that pulls from no registry.

    python -m devcluster.images trainer [--archive FILE]

What is built is kept: when only the project's own code has changed, a few seconds make the new image.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from devcluster.cache import alone_in, cache_directory
from devcluster.failure import ClusterError
from devcluster.programs import Say

ROOT = Path(__file__).parents[1]
KEPT = 3
"""Versions of an image; they share what is large while the lock files stay the same."""

BASE = "FINETUNE_TEST_BASE_IMAGE"
"""The environment variable for the image that the trainer's is built on."""
LOCAL_BASE = "localhost/finetune-base"
BASE_PACKAGES = ("ca-certificates", "g++", "python3-dev", "python3-venv", "wget")
BASE_DOCKERFILE = "FROM scratch\nADD rootfs.tar /\n"
LEFT_OUT = (
    "dev/*",
    "proc/*",
    "sys/*",
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
    "var/log/*",
    "etc/hostname",
    "etc/resolv.conf",
)

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BASE_DISK, ARCHIVE_DISK = 2 * 2**30, 8 * 2**30
"""Bytes; an archive holds an image uncompressed."""
BUILD_SECONDS, PULL_SECONDS, BASE_SECONDS, EXPORT_SECONDS = 3600, 900, 1200, 900
SAY_EVERY_SECONDS = 20
LAST_LINES = 12
CHUNK = 1 << 20
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ALONE = ("unshare", "--mount", "--propagation=private", "--")
"""What a program mounts behind this is seen by nobody else, and gone when the program is."""


@dataclass(frozen=True)
class Image:
    """A container image, by a name that changes whenever anything in it does."""

    name: str


@dataclass(frozen=True)
class Mirror:
    """Where Debian's packages come from."""

    address: str
    components: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """What an image is built from."""

    name: str
    effort: str
    """What building it costs."""
    disk: int
    """Bytes that must be free for it: a layer is three times on the disk while it is made."""

    @property
    def dockerfile(self) -> Path:
        """From the repository's root."""
        return Path(f"images/{self.name}.Dockerfile")

    @property
    def ignore_file(self) -> Path:
        """Which files of the repository go in."""
        return Path(f"{self.dockerfile}.dockerignore")

    @property
    def repository(self) -> str:
        """The image's name without its tag."""
        return f"localhost/finetune-{self.name}"


TRAINER = Recipe(
    "trainer", "3 to 8 minutes and 10 GB when the dependencies have changed, else seconds", 24 * 2**30
)
OPERATOR = Recipe("operator", "less than a minute", 2 * 2**30)
RECIPES = {recipe.name: recipe for recipe in (TRAINER, OPERATOR)}


class Builder(Protocol):
    """Makes images and keeps them."""

    def identity(self, name: str) -> str | None:
        """The hash of an image's content; None when there is no such image."""

    def pull(self, name: str) -> None:
        """Fetches an image from its registry. Raises ClusterError."""

    def build(
        self, name: str, dockerfile: Path, context: Path, arguments: Mapping[str, str], disk: int, say: Say
    ) -> None:
        """Builds an image, layers that have not changed excepted.

        Raises ClusterError with the last lines of the output.
        """

    def names(self, repository: str) -> list[str]:
        """The images of a repository, the newest first."""

    def remove(self, name: str) -> None:
        """Forgets an image, and its layers when no other image has them."""

    def save(self, name: str, file: Path, known: Collection[str]) -> None:
        """Writes an archive of an image, without layers that are known to who reads it."""


def build_image(recipe: Recipe, say: Say) -> Image:
    """An image of the repository as it is, built when it is not there. Raises ClusterError."""
    with alone_in(images_directory()):
        builder = _builder()
        base = base_image(builder, say)
        on = f"{base} {builder.identity(base)}"
        image = _image_of(recipe, on)
        stale: list[str] = []
        while builder.identity(image.name) is None:
            say(f"building {image.name} on {base}; {recipe.effort}")
            started = time.monotonic()
            builder.build(image.name, ROOT / recipe.dockerfile, ROOT, {"BASE": base}, recipe.disk, say)
            say(f"built {image.name} in {time.monotonic() - started:.0f} s")
            built, image = image, _image_of(recipe, on)
            if built != image:  # somebody wrote to the files meanwhile: it may be made of either
                stale.append(built.name)
        for name in stale:  # not before the right one is built, which takes their layers over
            builder.remove(name)
        others = [name for name in builder.names(recipe.repository) if name != image.name]
        for name in others[KEPT - 1 :]:
            with suppress(ClusterError):  # a container of somebody's may have it
                builder.remove(name)
        return image


def base_image(builder: Builder, say: Say) -> str:
    """The name of the image to build on.

    It is that of `$FINETUNE_TEST_BASE_IMAGE`, else the Dockerfile's own, else that of a Debian made here.

    Once there is one, it is kept. Raises ClusterError.
    """
    named, public = os.environ.get(BASE), _public_base()
    if named:
        if builder.identity(named) is None:
            say(f"pulling {named}")
            builder.pull(named)
        return named
    local = _local_base()
    for name in (public, local):
        if builder.identity(name) is not None:
            return name
    say(f"pulling {public}")
    try:
        builder.pull(public)
    except ClusterError as error:
        reason = str(error).splitlines()[-1].strip()
        say(f"it cannot be pulled ({reason}); making {local} from Debian's packages instead, 1 to 3 minutes")
        _make_local_base(builder, local, say)
        return local
    return public


def export(image: Image, archive: Path, say: Say, *, known: Collection[str] = ()) -> None:
    """Writes an archive for `ctr images import` and `kind load image-archive`; a whole one is not made again.

    Layers whose digests (`sha256:...`) are `known` to who reads it are left out, where the builder can do
    that.
    """
    if not known and archive_holds(archive, image):
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(images_directory()):
        started = time.monotonic()
        partial = archive.with_name(f".{archive.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            _builder().save(image.name, partial, known)
            partial.replace(archive)
        finally:
            partial.unlink(missing_ok=True)
    say(f"wrote {archive}, {archive.stat().st_size / 1e9:.1f} GB, in {time.monotonic() - started:.0f} s")


def images_directory() -> Path:
    """Where images are kept, but for Docker's."""
    return cache_directory() / "images"


def fingerprint(recipe: Recipe, root: Path, base: str) -> str:
    """12 digits that follow from the base and from every file of the repository that goes into an image."""
    digest = hashlib.sha256(base.encode())
    for path in (recipe.dockerfile, recipe.ignore_file, *context_files(recipe, root)):
        content = (root / path).read_bytes()
        digest.update(f"\n{path} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def context_files(recipe: Recipe, root: Path) -> list[Path]:
    """The files that an image is built from, sorted: the exceptions in its ignore file, without caches."""
    rules = (root / recipe.ignore_file).read_text().split()
    included = [root / rule[1:] for rule in rules if rule.startswith("!")]
    excluded = {rule.removeprefix("**/") for rule in rules if rule.startswith("**/")}
    files = [
        file
        for path in included
        for file in (path.rglob("*") if path.is_dir() else (path,))
        if file.is_file()
    ]
    relative = [file.relative_to(root) for file in files]
    return sorted(path for path in relative if not excluded.intersection(path.parts))


def archive_holds(archive: Path, image: Image) -> bool:
    """Whether `archive` is one of `image`, with every layer."""
    try:
        with tarfile.open(archive, "r:") as tar:
            members = set(tar.getnames())
            index = "index.json" if "index.json" in members else "manifest.json"
            if json.dumps(image.name) not in _member(tar, index).decode():
                return False
            return all(name in members for name in _layers(tar, members))
    except (OSError, tarfile.TarError, KeyError, ValueError):
        return False


def mirror(targets: str, release: str) -> Mirror:
    """The mirror of a release of Debian.

    `targets` are lines of `apt-get indextargets`: release, address and component.
    """
    found: dict[str, list[str]] = {}
    for line in targets.splitlines():
        of, address, component = line.split()
        if of == release:
            found.setdefault(address, []).append(component)
    for address, components in found.items():
        if "main" in components:
            return Mirror(address, tuple(dict.fromkeys(components)))
    raise ClusterError(f"apt has no source for {release}; name an image with Python to build on in {BASE}")


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is no file"
    return file.read()


def _layers(tar: tarfile.TarFile, members: Collection[str]) -> Iterator[str]:
    if "index.json" not in members:
        for each in json.loads(_member(tar, "manifest.json")):
            yield from each["Layers"]
        return
    waiting = json.loads(_member(tar, "index.json"))["manifests"]
    while waiting:
        name = _blob(waiting.pop()["digest"])
        manifest = json.loads(_member(tar, name))
        waiting += manifest.get("manifests", [])
        yield from (_blob(layer["digest"]) for layer in manifest.get("layers", []))


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


class Docker:
    """Docker, with the storage that it has."""

    def identity(self, name: str) -> str | None:
        try:
            return _output(["docker", "image", "inspect", "--format={{.Id}}", name], seconds=60).strip()
        except ClusterError:
            return None

    def pull(self, name: str) -> None:
        _output(["docker", "pull", "--quiet", name], seconds=PULL_SECONDS)

    def build(
        self,
        name: str,
        dockerfile: Path,
        context: Path,
        arguments: Mapping[str, str],
        disk: int,  # noqa: ARG002 - where Docker keeps images is not known here
        say: Say,
    ) -> None:
        command: list[str | Path] = ["docker", "build", "--progress=plain", *_build_options(arguments)]
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        _output(
            [*command, "--file", dockerfile, "--tag", name, context],
            seconds=BUILD_SECONDS,
            environment=environment,
            say=say,
        )

    def names(self, repository: str) -> list[str]:
        return _output(
            ["docker", "image", "ls", "--format={{.Repository}}:{{.Tag}}", repository], seconds=60
        ).split()

    def remove(self, name: str) -> None:
        _output(["docker", "image", "rm", name], seconds=300)

    def save(self, name: str, file: Path, known: Collection[str]) -> None:  # noqa: ARG002 - it saves all layers or none
        _output(["docker", "save", f"--output={file}", name], seconds=EXPORT_SECONDS)


class Buildah:
    """buildah, as root, with a storage of its own below `directory`; its mounts end with its process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._storage = directory / "storage"

    def identity(self, name: str) -> str | None:
        try:
            return self._run("inspect", "--type=image", "--format={{.FromImageID}}", name, seconds=60).strip()
        except ClusterError:
            return None

    def pull(self, name: str) -> None:
        self._run("pull", "--quiet", name, seconds=PULL_SECONDS)

    def build(
        self, name: str, dockerfile: Path, context: Path, arguments: Mapping[str, str], disk: int, say: Say
    ) -> None:
        _check_disk(self._directory, disk, f"building {name}")
        self._run("rm", "--all", seconds=300)  # what a build that was killed has left
        ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
        options = [
            *_build_options(arguments),
            "--layers",
            "--network=host",
            *([f"--ignorefile={ignore}"] if ignore.exists() else []),
        ]
        self._run(
            "build",
            *options,
            f"--file={dockerfile}",
            f"--tag={name}",
            context,
            seconds=BUILD_SECONDS,
            say=say,
        )

    def names(self, repository: str) -> list[str]:
        listed = json.loads(self._run("images", "--json", seconds=60) or "[]")
        images = sorted(listed, key=lambda each: float(each["created"]), reverse=True)
        return [name for each in images for name in each["names"] or () if name.startswith(f"{repository}:")]

    def remove(self, name: str) -> None:
        self._run("rmi", name, seconds=300)

    def save(self, name: str, file: Path, known: Collection[str]) -> None:
        # `buildah push` needs four times as long: it compresses, or copies twice.
        _check_disk(file.parent, 0 if known else ARCHIVE_DISK, f"the archive of {name}")
        described = json.loads(self._run("inspect", "--type=image", name, seconds=60))
        with file.open("wb") as out:
            write_oci_archive(
                out, name, described["Manifest"].encode(), described["Config"].encode(), self._storage, known
            )

    def _run(self, *arguments: str | Path, seconds: float, say: Say | None = None) -> str:
        with _scratch(self._directory / "scratch") as scratch:
            environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(scratch)}
            storage = [
                f"--root={self._storage}",
                f"--runroot={self._directory / 'run'}",
                "--storage-driver=overlay",
            ]
            return _output(
                [*ALONE, "buildah", *storage, *arguments], seconds=seconds, environment=environment, say=say
            )


def write_oci_archive(
    out: IO[bytes], name: str, manifest: bytes, config: bytes, storage: Path, known: Collection[str]
) -> None:
    """Writes an OCI archive from a storage of buildah, Podman or CRI-O; every layer's hash is checked.

    Raises ClusterError when a layer is not there as it should be.
    """
    parts = json.loads(manifest)
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    named = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    entry = {
        "mediaType": parts.get("mediaType", MANIFEST),
        "digest": digest,
        "size": len(manifest),
        "annotations": named,
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        _blob(digest): manifest,
        _blob(parts["config"]["digest"]): config,
    }
    for path, text in files.items():
        _add(out, path, len(text), [text])
    stored = {
        each.get("diff-digest"): each["id"]
        for each in json.loads((storage / "overlay-layers" / "layers.json").read_text())
    }
    for layer in {each["digest"]: each for each in parts["layers"]}.values():
        if layer["digest"] not in known:
            try:
                content = _checked(layer["digest"], stored_layer(storage, stored[layer["digest"]]))
                _add(out, _blob(layer["digest"]), layer["size"], content)
            except (OSError, KeyError, ValueError, binascii.Error) as error:
                raise ClusterError(
                    f"{storage}: layer {layer['digest']} of {name} cannot be read; remove {storage.parent}:"
                    f" {error!r}"
                ) from error
    out.write(bytes(2 * tarfile.BLOCKSIZE))


def stored_layer(storage: Path, layer: str) -> Iterator[bytes]:
    """The bytes of a layer's tar file: its files, and the headers between them, which are kept apart."""
    files = storage / "overlay" / layer / "diff"
    with gzip.open(storage / "overlay-layers" / f"{layer}.tar-split.gz") as entries:
        for line in entries:
            entry = json.loads(line)
            if entry["type"] == 2:
                yield base64.b64decode(entry["payload"])
            elif entry.get("size"):
                name = entry["name"] if "name" in entry else os.fsdecode(base64.b64decode(entry["name_raw"]))
                with (files / name).open("rb") as file:
                    yield from iter(lambda: file.read(CHUNK), b"")


def _add(out: IO[bytes], path: str, size: int, content: Iterator[bytes] | Sequence[bytes]) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = size
    out.write(entry.tobuf(tarfile.GNU_FORMAT))
    written = sum(map(out.write, content))
    if written != size:
        raise ValueError(f"{path} has {written} bytes instead of {size}")
    out.write(bytes(-size % tarfile.BLOCKSIZE))


def _checked(digest: str, content: Iterator[bytes]) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    for chunk in content:
        hasher.update(chunk)
        yield chunk
    if digest != f"sha256:{hasher.hexdigest()}":
        raise ValueError(f"its content has the digest sha256:{hasher.hexdigest()}")


def _builder() -> Builder:
    if shutil.which("docker") is not None and _works(["docker", "info"]):
        return Docker()
    if os.geteuid() != 0:
        raise ClusterError(
            "building an image needs Docker, or root with buildah; start Docker or run this as root"
        )
    if shutil.which("buildah") is None:
        raise ClusterError("building an image needs Docker or buildah: apt-get install buildah debootstrap")
    return Buildah(images_directory())


def _image_of(recipe: Recipe, base: str) -> Image:
    return Image(f"{recipe.repository}:{fingerprint(recipe, ROOT, base)}")


def _public_base() -> str:
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / TRAINER.dockerfile).read_text(), re.MULTILINE)
    assert found, f"{TRAINER.dockerfile} names no base"
    return found[1]


def _local_base() -> str:
    made_of = json.dumps([BASE_PACKAGES, BASE_DOCKERFILE, LEFT_OUT])
    return f"{LOCAL_BASE}:{_release()}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def _release() -> str:
    try:
        return platform.freedesktop_os_release()["VERSION_CODENAME"]
    except (OSError, KeyError):
        return "unknown"


def _make_local_base(builder: Builder, name: str, say: Say) -> None:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise ClusterError(
            "there is no registry to pull from, and no debootstrap for root to make a base with: apt-get"
            f" install buildah debootstrap, or name an image in {BASE}"
        )
    listed = _output(
        ["apt-get", "indextargets", "--format=$(RELEASE) $(REPO_URI) $(COMPONENT)", "Created-By: Packages"],
        seconds=60,
    )
    source = mirror(listed, _release())
    with _scratch(images_directory() / "base") as scratch:
        started = time.monotonic()
        options = [
            "--variant=minbase",
            f"--include={','.join(BASE_PACKAGES)}",
            f"--components={','.join(source.components)}",
        ]
        _output(
            [*ALONE, "debootstrap", *options, _release(), scratch / "rootfs", source.address],
            seconds=BASE_SECONDS,
            say=say,
        )
        say(f"installed Debian {_release()} from {source.address} in {time.monotonic() - started:.0f} s")
        (scratch / "context").mkdir()
        archive = scratch / "context" / "rootfs.tar"
        content = [
            f"--directory={scratch / 'rootfs'}",
            *(f"--exclude=./{pattern}" for pattern in LEFT_OUT),
            ".",
        ]
        _output(["tar", "--create", "--numeric-owner", f"--file={archive}", *content], seconds=300)
        dockerfile = scratch / "Dockerfile"
        dockerfile.write_text(BASE_DOCKERFILE)
        builder.build(name, dockerfile, archive.parent, {}, BASE_DISK, say)


def _build_options(arguments: Mapping[str, str]) -> list[str]:
    given = {**{name: os.environ[name] for name in PROXIES if name in os.environ}, **arguments}
    bundle = _ca_bundle()
    secret = [f"--secret=id=ca,src={bundle}"] if bundle else []
    return [*(f"--build-arg={name}={value}" for name, value in given.items()), *secret]


def _ca_bundle() -> Path | None:
    named = (os.environ.get("PIP_CERT"), ssl.get_default_verify_paths().cafile, CA_BUNDLE)
    return next((Path(file) for file in named if file and Path(file).is_file()), None)


def _check_disk(directory: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ClusterError(f"{directory}: {free / 2**30:.1f} GiB are free; {what} needs {needed >> 30} GiB")


def _works(command: Sequence[str]) -> bool:
    try:
        _output(command, seconds=20)
    except ClusterError:
        return False
    return True


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """An empty directory that is gone afterwards; one that a killed run left behind is removed first."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _output(
    command: Sequence[str | Path],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    say: Say | None = None,
) -> str:
    """What a command writes to standard output.

    Raises ClusterError, with the last lines it wrote, when it fails or takes too long.
    """
    program = next(str(word) for word in command if str(word) not in ALONE)
    started = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ClusterError(f"{error.filename} is not installed") from error
        try:
            while (taken := time.monotonic() - started) < seconds:
                try:
                    code = process.wait(min(SAY_EVERY_SECONDS, seconds - taken))
                    break
                except subprocess.TimeoutExpired:
                    if say is not None:
                        say(f"{program} works, {time.monotonic() - started:.0f} s")
            else:
                raise ClusterError(
                    "\n".join([f"{program} took longer than {seconds:.0f} s", *_last_lines(errors, output)])
                )
        finally:
            _end(process)
        if code:
            raise ClusterError(
                "\n".join([f"{program} failed with exit code {code}", *_last_lines(errors, output)])
            )
        output.seek(0)
        return output.read().decode(errors="replace")


def _last_lines(*logs: IO[bytes]) -> list[str]:
    for log in logs:
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
        if lines:
            return [f"  {line[:400]}" for line in lines[-LAST_LINES:]]
    return []


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that still runs, and its children."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, wanted)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


def main() -> None:
    """Builds an image and prints its name; what is wrong is said in a line, with exit code 1."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", file=sys.stderr, flush=True)

    parser = argparse.ArgumentParser(description="Builds an image for the tests' cluster.")
    parser.add_argument("image", choices=RECIPES)
    parser.add_argument("--archive", type=Path, help="also write the image there, for `ctr images import`")
    arguments = parser.parse_args()
    archive: Path | None = arguments.archive
    try:
        image = build_image(RECIPES[arguments.image], say)
        if archive is not None:
            export(image, archive, say)
    except ClusterError as error:
        sys.exit(f"error: {error}")
    say("the image is there")
    print(image.name)


if __name__ == "__main__":
    main()
