"""What `helm test` runs: creates a FineTuneJob, prints what becomes of it, and deletes it again.

    python -m finetune_operator.helm_test JOB_FILE SECONDS

Exit code 0 when the job has succeeded within so many seconds, else 1.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from finetune_api.failure import FineTuneError
from finetune_api.manifest import KIND
from finetune_api.status import Phase
from finetune_api.yaml_text import parse
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, KubernetesApi
from finetune_operator.decide.phases import ENDED
from finetune_operator.observed import Job, KubernetesObject, ObjectMeta, read_job

POLL_SECONDS = 2.0


async def try_job(
    api: KubernetesApi, manifest: KubernetesObject, seconds: float, say: Callable[[str], None]
) -> bool:
    """Whether the job of this manifest succeeds within so many seconds; `say` gets each line to print.

    A job of its name that exists already is deleted first. Raises ApiRefusedError or OSError when a call to
    the API server fails.
    """
    metadata = ObjectMeta.model_validate({"uid": "", **cast("KubernetesObject", manifest["metadata"])})
    deadline = time.monotonic() + seconds
    await _delete(api, metadata, deadline)
    await api.create(manifest)
    say(f"made FineTuneJob {metadata.namespace}/{metadata.name}")
    try:
        return await _follow(api, metadata, deadline, say)
    finally:
        await _delete(api, metadata, deadline)


async def _follow(
    api: KubernetesApi, metadata: ObjectMeta, deadline: float, say: Callable[[str], None]
) -> bool:
    said = ""
    while time.monotonic() < deadline:
        job = await _job(api, metadata)
        if job is None:
            say("it is gone: somebody has deleted it")
            return False
        line = f"{job.status.phase or 'no operator has seen it yet'}: {job.status.message or ''}".rstrip(": ")
        if line != said:
            say(line)
            said = line
        if job.status.phase in ENDED:
            return job.status.phase is Phase.SUCCEEDED
        await asyncio.sleep(POLL_SECONDS)
    say("it has taken too long")
    return False


async def _delete(api: KubernetesApi, metadata: ObjectMeta, deadline: float) -> None:
    """Deletes the job of this name, if there is one; waits until it is gone, or the deadline has passed."""
    while (job := await _job(api, metadata)) is not None:
        await api.delete(KIND, metadata.namespace, metadata.name, job.metadata.uid)
        if time.monotonic() >= deadline + POLL_SECONDS:
            return
        await asyncio.sleep(0.2)


async def _job(api: KubernetesApi, metadata: ObjectMeta) -> Job | None:
    body = await api.get(KIND, metadata.namespace, metadata.name)
    return read_job(body) if body is not None else None


def _say(line: str) -> None:
    print(line, flush=True)


async def _run(file: Path, seconds: float) -> bool:
    manifest, _ = parse(file.read_text(), str(file))
    api = await KubernetesApi.connect()
    try:
        return await try_job(api, manifest, seconds, _say)
    finally:
        await api.close()


def main() -> None:
    """Reads the command line, and runs."""
    try:
        succeeded = asyncio.run(_run(Path(sys.argv[1]), float(sys.argv[2])))
    except (ApiRefusedError, FineTuneError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(not succeeded)


if __name__ == "__main__":
    main()
