"""Brings the development cluster up and down.

python -m devcluster up
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn

import typer

from devcluster.failure import ClusterError
from devcluster.programs import CONTROL_PLANE, find
from devcluster.providers import Cluster, choose

STARTED = time.monotonic()
COMMANDS = typer.Typer(
    help="The development cluster, which the end-to-end tests run on.",
    no_args_is_help=True,
    add_completion=False,
)


def say(line: str) -> None:
    """Progress, for people; standard output holds results only."""
    print(f"[{time.monotonic() - STARTED:5.1f} s] {line}", file=sys.stderr, flush=True)


@COMMANDS.command()
def build() -> None:
    """Find or build what the tests' control plane is made of."""
    for program in CONTROL_PLANE.programs:
        find(program, say)


@COMMANDS.command()
def up() -> None:
    """Start the cluster, and print the line that makes kubectl use it."""
    cluster = _chosen()
    say("the cluster is up" if cluster.up() else "the cluster was up already")
    print(f"export KUBECONFIG={cluster.kubeconfig}")


@COMMANDS.command()
def down() -> None:
    """Stop the cluster and remove what it left on this machine, but for the cache."""
    _chosen().down()
    say("the cluster is gone")


def _chosen() -> Cluster:
    return choose(os.environ, say)


def main() -> None:
    """Runs a command; what is wrong is said in a line, with exit code 1."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        COMMANDS()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
