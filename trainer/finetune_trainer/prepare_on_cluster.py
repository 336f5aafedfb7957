"""Prepares a FineTuneJob in a pod of its own: `python -m finetune_trainer.prepare_on_cluster`.

That comes before a cluster is asked for. It reads and checks all that a job needs, without a device, leaves
the tokens of the rows in the run directory, and then the plan in the config map of the progress record. It
ends with 0 when the job is prepared, with 1 when something is wrong with it, and the record says what;
stopped by SIGTERM, with 143.
"""

from __future__ import annotations

import sys
from pathlib import Path

from finetune_api.assignment import Assignment
from finetune_api.manifest import Manifest, read_manifest
from finetune_api.paths import JOB_DIRECTORY, JOB_FILE
from finetune_api.status import ProgressRecord
from finetune_trainer.attempt import Beginning, claim, sharding_of
from finetune_trainer.export.output import check_output
from finetune_trainer.on_cluster import FINISHED, AttemptReports, assigned, reported, resources_of, run_of
from finetune_trainer.report.config_map import ConfigMap
from finetune_trainer.report.trackers.tracker import check_tracker
from finetune_trainer.workers.environment import without_bitsandbytes


def main() -> int:
    """Prepares the job that the environment describes; returns the exit code."""
    assignment = assigned()
    config_map = ConfigMap.in_this_pod(assignment.config_map)
    return prepare_job(assignment, Path(JOB_DIRECTORY / JOB_FILE), config_map)


def prepare_job(assignment: Assignment, job_file: Path, config_map: ConfigMap) -> int:
    """Prepares a job, and returns the exit code."""

    def run(reports: AttemptReports) -> int:
        _prepare(assignment, read_manifest(job_file), config_map.namespace, reports)
        return FINISHED

    return reported(assignment, config_map, run, preparing=True)


def _prepare(assignment: Assignment, manifest: Manifest, namespace: str, reports: AttemptReports) -> None:
    without_bitsandbytes(manifest.spec)
    run = run_of(assignment, manifest, namespace)
    check_tracker(manifest.spec, run)
    reports.progress(ProgressRecord(checkpoints=run.checkpoints()))
    beginning = Beginning.of(run, manifest.spec)

    from finetune_trainer.model.load import check_kernels
    from finetune_trainer.plan.deepspeed_file import deepspeed_here
    from finetune_trainer.plan.fit import check_prepared, with_checkpointing, with_host_memory
    from finetune_trainer.plan.kept_tokens import TokensToKeep
    from finetune_trainer.plan.prepare import prepare

    of_kernels = check_kernels(manifest.spec, on_gpu=assignment.on_gpu)
    of_output = check_output(manifest.spec)
    tokens = TokensToKeep()
    prepared = prepare(manifest.spec, tokens.tokenize)
    beginning.check(prepared)
    resources = resources_of(assignment, manifest)
    file, _ = deepspeed_here(manifest.spec)
    sharding = sharding_of(manifest.spec, file, resources.device)
    prepared = with_checkpointing(prepared, file, sharding, resources)
    check_prepared(prepared, file, sharding, resources)
    prepared = with_host_memory(prepared, sharding, on_gpu=assignment.on_gpu)
    for remark in (*manifest.warnings, *of_kernels, *of_output, *prepared.warnings):
        reports.say(f"warning: {remark}")
    claim(run, manifest)
    tokens.keep(run)
    reports.prepared(prepared)
    reports.progress(ProgressRecord(plan=prepared.plan, checkpoints=run.checkpoints()))


if __name__ == "__main__":
    sys.exit(main())
