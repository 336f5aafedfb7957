"""Starts the operator: `python -m finetune_operator`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import warnings
from typing import NoReturn


def run() -> None:
    """Runs the operator until SIGTERM.

    A wrong configuration ends it at once with exit code 1, and every mistake on standard error.
    """
    # The first process of a container is deaf to signals that it has no handler for, and kopf's is there a
    # second later only.
    signal.signal(signal.SIGTERM, _end)

    import kopf

    import finetune_operator.main  # noqa: F401 - registers the handlers
    from finetune_api.failure import FineTuneError
    from finetune_operator.cluster.kubernetes_api import COMPONENT
    from finetune_operator.cluster.memories import NoMemories
    from finetune_operator.cluster.namespaces import Insights
    from finetune_operator.settings.configuration import load_configuration
    from finetune_operator.state import OperatorState
    from finetune_operator.telemetry.logs import configure

    try:
        configuration = load_configuration()
    except FineTuneError as error:
        sys.exit(str(error))
    configure(configuration.log_format, configuration.log_level)
    gc.freeze()  # what is imported stays, and need not be gone through with each collection
    # kopf makes this and, when the start fails, leaves it: no matter for whoever has to read why it failed.
    warnings.filterwarnings("ignore", "coroutine 'authenticator' was never awaited", RuntimeWarning)
    ready = asyncio.Event()
    state = OperatorState(configuration, Insights(), ready)
    running = kopf.operator(
        registry=kopf.get_default_registry(),
        memo=kopf.Memo(state=state),
        memories=NoMemories(),
        ready_flag=ready,
        standalone=True,
        # kopf would ask for the user's name, and in a container the user has none.
        identity=COMPONENT,  # type: ignore[arg-type] # a new type of str that kopf does not export
        clusterwide=not configuration.watch_namespaces,
        # A pattern, which by itself matches nothing since kopf does not look for namespaces: `main` says in
        # the insights which are watched, and a name given here would be there for good.
        namespaces=["*"] if configuration.watch_namespaces else [],
        insights=state.insights,
    )
    try:
        with state.beginnings.used():
            asyncio.run(running)
    except Exception:
        if state.failure is None:
            raise
        sys.exit(1)  # kopf has logged why


def _end(number: int, _: object) -> NoReturn:
    # An exception would be lost where whatever is being imported catches it, and so far there is nothing to
    # clean up.
    os._exit(128 + number)


if __name__ == "__main__":
    run()
