from __future__ import annotations

import pickle
from pathlib import Path

from tests.trainer.training_jobs import LORA, job_of, some_rows

from finetune_trainer.data.token_files import map_rows, write_rows


def test_workers_of_this_machine_get_where_rows_are_and_not_the_rows(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = some_rows(500)
    (tmp_path / "tokens").mkdir()
    write_rows(rows, tmp_path / "tokens")
    job = job_of(tiny_model, tmp_path / "run", LORA, train=map_rows(tmp_path / "tokens"))

    sent = pickle.dumps(job.for_this_machine())

    received = pickle.loads(sent)
    assert len(sent) < rows.nbytes / 4
    assert received.prepared.train.directory == tmp_path / "tokens"
    assert received.prepared.fingerprint == job.prepared.fingerprint
    assert received.prepared.validation is not None
    assert received.prepared.numbers == job.prepared.numbers
