from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from devcluster.control_plane import ControlPlane
from devcluster.failure import ClusterError
from devcluster.images import Image
from devcluster.kubeconfig import CONTEXT
from devcluster.providers import CHOICE, ExistingCluster, KindCluster, NodeCluster, choose, superseded
from devcluster.sandbox import check_system


@pytest.mark.parametrize(
    ("choice", "chosen"), [("node", NodeCluster), ("kind", KindCluster), ("context:mine", ExistingCluster)]
)
def test_the_environment_chooses(choice: str, chosen: type) -> None:
    assert type(choose({CHOICE: choice}, print)) is chosen


@pytest.mark.parametrize("choice", ["minikube", "context:", "context"])
def test_a_choice_that_is_none_is_refused(choice: str) -> None:
    with pytest.raises(
        ClusterError, match=f"FINETUNE_TEST_CLUSTER is '{choice}'; it must be node, kind or context:NAME"
    ):
        choose({CHOICE: choice}, print)


def test_a_kubeconfig_alone_names_no_cluster_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert not isinstance(choose({"KUBECONFIG": str(tmp_path / "config")}, print), ExistingCluster)


def test_only_the_context_that_was_named_is_used(
    api_server: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    with pytest.raises(ClusterError, match=f"there is no context production; there are {CONTEXT}"):
        choose({CHOICE: "context:production"}, print).up()


@pytest.mark.parametrize("content", [None, "- a list", "contexts: [{}]", ":\n:"])
def test_what_is_no_kubeconfig_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(ClusterError, match=rf"^{file}: not a kubeconfig that can be read"):
        choose({CHOICE: "context:mine"}, print).up()


def test_an_existing_cluster_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump({"contexts": [{"name": "mine"}]}))
    monkeypatch.setenv("KUBECONFIG", str(file))
    before = file.read_bytes()
    choose({CHOICE: "context:mine"}, print).down()
    assert file.read_bytes() == before


def test_everything_that_a_node_lacks_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ClusterError) as raised:
        check_system({"no-such-program": "a-package", "/no/such/plugin": "plugins", "sh": "dash"})
    assert (
        str(raised.value) == "a node needs root (the control plane alone does not): run this as root, or set"
        " FINETUNE_TEST_CLUSTER=kind; programs are missing: apt-get install a-package plugins"
    )


def test_what_an_image_supersedes_goes_with_the_names_that_were_kept_for_it_alone() -> None:
    images = {
        "localhost/trainer:1": "sha256:a",
        "localhost/trainer:2": "sha256:b",
        "localhost/operator:1": "sha256:c",
        "sha256:1": "sha256:a",
        "sha256:2": "sha256:b",
        "sha256:3": "sha256:c",
        "sha256:0": "sha256:of a name that is gone",
    }
    assert superseded(images, Image("localhost/trainer:2")) == ["localhost/trainer:1", "sha256:1", "sha256:0"]
