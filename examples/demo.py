"""Trains examples/quickstart.yaml with the `finetune` command, and shows what the model learnt.

    python examples/demo.py

Run it from the project's folder, after examples/make_inputs.py. Interrupted or killed, it resumes from the
newest checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from finetune_api.manifest import read_manifest
from finetune_cli.loss_plot import draw_losses
from finetune_cli.quiet import quieten_libraries
from finetune_trainer.data.reading import read_rows
from finetune_trainer.local import DEFAULT_STORAGE, local_run_directory

QUICKSTART = Path("examples/quickstart.yaml")
PICTURE = Path("finetune-runs/quickstart-loss.png")


def main() -> None:
    """Trains, which shows answers before and after; then shows the right answer, and draws the losses."""
    quieten_libraries()
    started = time.monotonic()
    console = Console(highlight=False, soft_wrap=True, markup=False)
    manifest = read_manifest(QUICKSTART)
    run = local_run_directory(manifest, DEFAULT_STORAGE, None)
    if run.result() is not None:
        console.print("The last demo finished; its run is deleted, and this one trains anew.")
        run.delete()

    command = Path(sys.executable).with_name("finetune")
    trained = subprocess.run([command, "run", QUICKSTART], check=False)
    result = run.result()
    if trained.returncode or result is None:
        sys.exit(trained.returncode or 1)

    spec = manifest.spec
    assert spec.valid_path is not None
    asked = {sample.prompt for sample in result.samples}
    console.print()
    for row in read_rows(spec.valid_path, spec.trained_task):
        question, answer = row.messages
        if question.content in asked:
            console.print(f"Python's own answer to {question.content}\n  {answer.content}")
    draw_losses(Path(run.path) / "metrics.jsonl", PICTURE)
    console.print(f"loss plot: {PICTURE}\n{time.monotonic() - started:.0f} seconds in all")


if __name__ == "__main__":
    main()
