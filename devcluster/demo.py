"""The demonstration on a cluster: installs the chart, applies the quickstart, follows it to its end.

    make demo-cluster

The cluster stays; what one may do with it is said at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from devcluster.failure import ClusterError
from devcluster.helm import Helm
from devcluster.images import OPERATOR, TRAINER, build_image
from devcluster.installation import Installation
from devcluster.jobs import CLAIM, get, phase
from devcluster.kubectl import Kubectl
from devcluster.main import say
from devcluster.namespaces import ensure_restricted
from devcluster.objects import at
from devcluster.programs import find
from devcluster.providers import Cluster, choose
from devcluster.volumes import MOUNT, Volume
from devcluster.waiting import wait_for
from make_inputs import MODEL, TRAIN, VALIDATION, make_data, make_model

EXAMPLE = Path("examples/finetunejob.yaml")
NAME = "quickstart"
NAMESPACE = "finetune-demo"
TRAINING_SECONDS = 1200

NEXT = """\

The model is trained, and its Ray cluster is gone. The operator and this Kubernetes stay, to be looked at:

    export KUBECONFIG={kubeconfig} PATH={programs}:$PATH

    kubectl describe finetunejob {name} --namespace {namespace}       # what happened, and the whole status
    kubectl exec files --namespace {namespace} -- find {run} -maxdepth 2
    kubectl logs deployment/{operator} --namespace {system}

A job of your own: docs/first-job.md says how data and model are named, docs/on-a-cluster.md what a job on a
cluster needs.
`make demo-cluster` trains this one again, `make cluster-down` removes everything but the cache.
"""


def main() -> None:
    """Brings everything up, and trains. Raises ClusterError."""
    cluster = choose(os.environ, say)
    say("the cluster is up" if cluster.up() else "the cluster is up already")
    operator, trainer = build_image(OPERATOR, say), build_image(TRAINER, say)
    for image in (operator, trainer):
        cluster.provide(image)
    kubectl = cluster.kubectl
    installation = Installation(Helm(find("helm", say), kubectl), operator, trainer)
    say(
        f"helm upgrade --install {installation.release} charts/finetune-operator --namespace"
        f" {installation.namespace}"
    )
    installation.install()

    _volume(cluster, trainer.name)
    say(f"kubectl apply -f {EXAMPLE}")
    kubectl(
        "delete",
        "finetunejob",
        NAME,
        "--namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--timeout=60s",
        seconds=70,
    )
    kubectl("apply", "--namespace", NAMESPACE, "-f", EXAMPLE)
    _follow(kubectl)
    job = get(kubectl, NAMESPACE, NAME)
    say(f"{at(job, 'status', 'phase')}: {at(job, 'status', 'message')}")
    if at(job, "status", "phase") != "Succeeded":
        raise ClusterError(kubectl.story(NAMESPACE))
    run = str(at(job, "status", "runDirectory")).replace(f"pvc://{CLAIM}", MOUNT)
    print(
        NEXT.format(
            kubeconfig=kubectl.kubeconfig,
            programs=kubectl.program.parent,
            namespace=NAMESPACE,
            name=NAME,
            run=run,
            operator=installation.name,
            system=installation.namespace,
        )
    )


def _volume(cluster: Cluster, image: str) -> Volume:
    """The claim of the example, with its model and its data."""
    ensure_restricted(cluster.kubectl, NAMESPACE)
    volume = Volume(cluster, NAMESPACE, CLAIM, image)
    volume.put(make_model(), f"models/{MODEL}")
    data = make_data()
    for file in (TRAIN, VALIDATION):
        volume.put(data / file, f"data/{file}")
    return volume


def _follow(kubectl: Kubectl) -> None:
    """Until the job has ended; meanwhile what `kubectl get --watch` shows."""
    watch = ["get", "finetunejobs", NAME, "--namespace", NAMESPACE, "--watch"]
    say(f"kubectl {' '.join(watch)}")
    with subprocess.Popen(kubectl.command(*watch), stdin=subprocess.DEVNULL) as shown:
        try:
            wait_for(
                "the quickstart to end",
                lambda: phase(kubectl, NAMESPACE, NAME) in ("Succeeded", "Failed"),
                seconds=TRAINING_SECONDS,
                seen=lambda: kubectl.story(NAMESPACE),
                every=1,
            )
        finally:
            shown.terminate()


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(f"error: {error}")
