"""The command `finetune`, also installed as `kubectl-finetune`: what can be asked for, and how it ends.

Exit codes: 0 success, 1 the job or a file is wrong or training failed, 2 the command line is wrong, 130 after
Ctrl-C.
"""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from finetune_api.failure import FineTuneError
from finetune_cli.quiet import quieten_libraries

if TYPE_CHECKING:
    from finetune_api.changed_fields import ChangedField


class Output(StrEnum):
    """The form of the result: a table for people or JSON for programs."""

    TABLE = "table"
    JSON = "json"


class Server(StrEnum):
    """What serves a model."""

    VLLM = "vllm"
    KSERVE = "kserve"
    RAYSERVICE = "rayservice"


class RunOutput(StrEnum):
    """The form of a run's end: a summary for people, or the job with its status for programs."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


PICTURES = (".png", ".svg", ".pdf")

commands = typer.Typer(
    name="finetune",
    help="Fine-tune language models with a FineTuneJob or an LLMForge training YAML.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Job = Annotated[Path, typer.Argument(metavar="FILE", help="A FineTuneJob or an LLMForge training YAML.")]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's directory, or that of a checkpoint or merged model, here or in s3://… or gs://….",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="spec.FIELD=VALUE",
        help="A field of the spec instead of the file's, such as spec.lora_config.r=16. May be given often.",
    ),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="NAME", help="Another checkpoint than the best, such as epoch-3."),
]
OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="Form of standard output: tables for people, or nothing but JSON."),
]
RunOutputOption = Annotated[
    RunOutput,
    typer.Option(
        "--output",
        "-o",
        help="What the end shows: a summary for people, or nothing but the job with its status.",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Where runs are kept: a directory (default: ./finetune-runs), s3://… or gs://….",
    ),
]
DevicesOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Workers, instead of spec.num_devices.")
]
RowsOption = Annotated[
    int, typer.Option("--rows", metavar="N", min=0, help="Show so many training rows, token by token.")
]


def app() -> None:
    """Runs the command line; errors that a user can put right go to standard error, without a traceback."""
    quieten_libraries()
    try:
        commands()
    except FineTuneError as error:
        from finetune_cli.plain_text import say_problems

        say_problems(error.problems)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("finetune_"):
            raise
        from finetune_cli.plain_text import say_problems

        missing = f"this command needs {error.name}, which is not installed"
        say_problems([f"{missing}: pip install 'finetune-operator[trainer]'"])
        sys.exit(1)


def changed_fields(texts: list[str] | None) -> list[ChangedField]:
    """What `--set` changes; a text of another form is a mistake of the command line."""
    if not texts:
        return []
    from finetune_api.changed_fields import changed_field

    try:
        return [changed_field(text) for text in texts]
    except FineTuneError as error:
        raise typer.BadParameter("; ".join(error.problems), param_hint="'--set'") from error


def more_epochs(text: str) -> str:
    """Refuses what is no number of further epochs."""
    if not re.fullmatch(r"\+[1-9][0-9]{0,5}", text):
        raise typer.BadParameter(f"must be +N, the number of epochs more, is {text}")
    return text


def picture_path(path: Path | None) -> Path | None:
    """Refuses formats that cannot be drawn, before anything is read."""
    if path is not None and path.suffix not in PICTURES:
        raise typer.BadParameter(f"{path} must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}")
    return path


def show_version(asked: bool) -> None:
    """Answers `--version`."""
    if asked:
        typer.echo(f"finetune {version('finetune-operator')}")
        raise typer.Exit


@commands.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=show_version),
    ] = False,
) -> None:
    """Options of the command itself."""


@commands.command()
def run(
    file: Job,
    storage: StorageOption = None,
    devices: DevicesOption = None,
    changes: Changes = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Delete the run that is there once all is checked, and train anew."),
    ] = False,
    output: RunOutputOption = RunOutput.TABLE,
) -> None:
    """Train on this machine.

    A run that was interrupted resumes from its newest checkpoint or snapshot.
    Ctrl-C saves a snapshot and stops.
    """
    changed = changed_fields(changes)
    from finetune_api.manifest import read_manifest
    from finetune_cli.run import run_here
    from finetune_cli.status_view import FORMS

    raise typer.Exit(
        run_here(
            read_manifest(file, changed),
            storage=storage,
            devices=devices,
            restart=restart,
            form=FORMS[output],
        )
    )


@commands.command()
def extend(
    path: Annotated[
        str,
        typer.Argument(metavar="RUN", help="The directory of a finished run, here or in s3://… or gs://…."),
    ],
    epochs: Annotated[
        str, typer.Option(metavar="+N", callback=more_epochs, help="For how many epochs more it is trained.")
    ],
    storage: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the new run is kept; default: beside the old one."),
    ] = None,
    devices: DevicesOption = None,
    changes: Changes = None,
    output: RunOutputOption = RunOutput.TABLE,
) -> None:
    """Train a finished run for some epochs more.

    That is a new run, which goes on from the newest checkpoint of the old one.
    The learning rate is that of a run that was as long from the beginning.
    """
    changed = changed_fields(changes)
    from finetune_cli.extend import extend_run
    from finetune_cli.status_view import FORMS

    raise typer.Exit(
        extend_run(
            path,
            epochs=int(epochs),
            changes=changed,
            storage=storage,
            devices=devices,
            form=FORMS[output],
        )
    )


@commands.command()
def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="FineTuneJobs or LLMForge training YAMLs.")
    ],
    changes: Changes = None,
) -> None:
    """Show every mistake of one or more files, each with its field."""
    changed = changed_fields(changes)
    from finetune_cli.validate import validate_files

    raise typer.Exit(validate_files(files, changed))


@commands.command()
def convert(
    file: Annotated[Path, typer.Argument(metavar="LLMFORGE_YAML", help="An LLMForge training YAML.")],
) -> None:
    """Write a FineTuneJob manifest from an LLMForge training YAML."""
    from finetune_cli.plain_text import say_warnings
    from finetune_cli.validate import read_for_a_cluster

    manifest = read_for_a_cluster(file)
    say_warnings(manifest.warnings)
    typer.echo(manifest.to_yaml(), nl=False)


@commands.command()
def plan(
    file: Job,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=picture_path,
            help="Plot the learning rate to a .png, .svg or .pdf file.",
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Write the manifest of the nearest settings that fit the device instead."),
    ] = False,
    changes: Changes = None,
    rows: RowsOption = 0,
) -> None:
    """Show what would be trained: rows, tokens, steps, epochs, memory; nothing is trained."""
    changed = changed_fields(changes)
    from finetune_api.manifest import read_manifest
    from finetune_cli.plan import show_fitting, show_plan

    if fit:
        show_fitting(read_manifest(file, changed))
        return
    show_plan(read_manifest(file, changed), picture=plot, rows=rows, json_wanted=output is Output.JSON)


@commands.command()
def data(
    file: Job, rows: RowsOption = 0, changes: Changes = None, output: OutputOption = Output.TABLE
) -> None:
    """Show what the rows are: lengths, duplicates, truncation, and which tokens are trained on."""
    changed = changed_fields(changes)
    from finetune_api.manifest import read_manifest
    from finetune_cli.data import show_data

    show_data(read_manifest(file, changed), rows=rows, json_wanted=output is Output.JSON)


@commands.command()
def report(
    run_directory: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, here or in s3://… or gs://….")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the page goes (default: report.html in the run directory)."),
    ] = None,
) -> None:
    """Write a page about a run: losses, answers before and after, what was trained and how."""
    from finetune_cli.report import write_report

    write_report(run_directory, out)


@commands.command()
def crd() -> None:
    """Write the CustomResourceDefinition of FineTuneJob."""
    from finetune_api.crd import crd_yaml

    typer.echo(crd_yaml(), nl=False)


@commands.command()
def merge(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="The directory of a LoRA checkpoint, here or in s3://… or gs://…."
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Where the merged model goes: a directory that is new or empty."),
    ],
) -> None:
    """Merge a LoRA checkpoint into its base model."""
    from finetune_cli.merge import merge_checkpoint

    merge_checkpoint(checkpoint, out)


@commands.command()
def push(
    run_directory: Run,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="What it is called on the hub.")],
    checkpoint: CheckpointOption = None,
    merged: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter into its base, and upload the whole model.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="For all to see; a new repository is private otherwise.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="A branch, made if it is not there, instead of main.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="The message of the commit.")] = None,
) -> None:
    """Upload the best checkpoint of a run to a hub.

    The hub is that of HF_ENDPOINT; HF_TOKEN or `hf auth login` lets you write.
    """
    from finetune_cli.push import push_checkpoint

    push_checkpoint(
        run_directory,
        name,
        checkpoint=checkpoint,
        merged=merged,
        public=public,
        revision=revision,
        message=message,
    )


@commands.command()
def serve(
    run_directory: Run,
    kind: Annotated[
        Server,
        typer.Option("--as", help="A command of vLLM, a KServe InferenceService, or a KubeRay RayService."),
    ],
    checkpoint: CheckpointOption = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What requests call the model, instead of the job's name."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Where the server finds the checkpoint, if somewhere else: pvc://CLAIM/path, s3://…,"
            " gs://… or hf://OWNER/NAME.",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="With rayservice: the image of its pods.")
    ] = None,
) -> None:
    """Write the command or the manifest that serves a checkpoint; nothing is run."""
    from finetune_cli.serve import write_server

    write_server(run_directory, kind.value, checkpoint=checkpoint, name=name, at=at, image=image)


@commands.command()
def chat(
    run_directory: Run,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this, and end; else what is typed is answered.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message.")] = None,
    only: Annotated[
        Literal["base", "tuned"] | None, typer.Option(help="Ask one of the models alone.")
    ] = None,
    checkpoint: CheckpointOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The most tokens of an answer (default: 256).")
    ] = None,
    temperature: Annotated[
        float, typer.Option(metavar="T", min=0, help="0 takes the likeliest token always.")
    ] = 0.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Talk to a trained model and to its base, side by side."""
    if output is Output.JSON and prompt is None:
        raise typer.BadParameter("is for --prompt; give one", param_hint="--output json")
    from finetune_cli.chat import chat_with

    raise typer.Exit(
        chat_with(
            run_directory,
            checkpoint=checkpoint,
            only=only,
            system=system,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            json_wanted=output is Output.JSON,
        )
    )
