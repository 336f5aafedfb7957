"""Trains examples/quickstart.yaml with the `finetune` command, and shows what the model learnt.

    python examples/demo.py

Run it from the project's folder, after examples/make_inputs.py. Interrupted or killed, it resumes from the
newest checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.panel import Panel
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from finetune_api.manifest import read_manifest
from finetune_api.spec import FineTuneJobSpec
from finetune_cli.loss_plot import draw_losses
from finetune_cli.quiet import quieten_libraries
from finetune_trainer.data.reading import read_rows
from finetune_trainer.data.rows import Row
from finetune_trainer.local import DEFAULT_STORAGE, local_run_directory
from finetune_trainer.model.load import load_tokenizer
from finetune_trainer.tasks.task import task_of

QUICKSTART = Path("examples/quickstart.yaml")
QUESTION = "os.getpid"
"""The held-out row whose question is asked: the one about this function."""
ANSWER_TOKENS = 40
PICTURE = Path("finetune-runs/quickstart-loss.png")


def main() -> None:
    """Trains, then shows losses, answers and the picture."""
    quieten_libraries()
    started = time.monotonic()
    console = Console()
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

    best = next(checkpoint for checkpoint in result.checkpoints if checkpoint.best)
    evaluations = [
        line
        for line in map(json.loads, (Path(run.path) / "metrics.jsonl").read_text().splitlines())
        if "evalLoss" in line
    ]
    console.print()
    for line in evaluations:
        model = "base model" if line["step"] == 0 else f"after epoch {line['epoch']:g}"
        console.print(
            f"{model:14} validation loss {line['evalLoss']:.3f}, perplexity {line['perplexity']:.1f}",
            highlight=False,
        )

    row = held_out_row(manifest.spec)
    base_answer, tuned_answer = answers(manifest.spec, Path(best.path), row)
    console.print(
        Panel(
            f"[bold]{row.messages[0].content}[/]\n\nbase    {base_answer}\n\ntuned   {tuned_answer}\n\npython"
            f"  {row.messages[1].content}",
            title="a question that was held out",
            width=min(100, console.width),
        ),
        highlight=False,
    )
    draw_losses(Path(run.path) / "metrics.jsonl", PICTURE)
    console.print(f"loss plot: {PICTURE}\nadapter:   {best.path}", highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} seconds in all", highlight=False)


def held_out_row(spec: FineTuneJobSpec) -> Row:
    """The validation row about QUESTION."""
    assert spec.valid_path is not None
    rows = read_rows(spec.valid_path, spec.trained_task)
    return next(row for row in rows if f"`{QUESTION}`" in row.messages[0].content)


def answers(spec: FineTuneJobSpec, adapter: Path, row: Row) -> tuple[str, str]:
    """What the base model and the tuned model say to the row's question, without chance."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = load_tokenizer(spec)
    chat = task_of(spec).chat(tokenizer)
    prompt = torch.tensor([chat.prompt(row.messages[:1])])

    def answer(model: PreTrainedModel | PeftModel) -> str:
        with torch.inference_mode():
            generated = model.generate(  # type: ignore[operator]
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
            )
        return str(tokenizer.decode(generated[0, prompt.shape[1] :], skip_special_tokens=True)).strip()

    base = AutoModelForCausalLM.from_pretrained(spec.model_id, dtype=torch.float32)
    before = answer(base)
    return before, answer(PeftModel.from_pretrained(base, str(adapter)).eval())


if __name__ == "__main__":
    main()
