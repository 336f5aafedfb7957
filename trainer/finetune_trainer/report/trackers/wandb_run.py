"""A run at Weights & Biases, or on disk with WANDB_MODE=offline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec, LoggerConfig
from finetune_trainer.report.metrics import NumberLine, SampleLine, numbers_of
from finetune_trainer.report.trackers.published_fields import published_fields

if TYPE_CHECKING:
    import wandb

PROJECT = "llmforge"
"""LLMForge's default project."""

SAMPLES = "samples"
"""The name of the table of answers."""

LONGEST_TAG = 64
"""The most characters of a tag that wandb accepts."""


CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
"""Variables of the environment that log in to wandb."""


class WandbRun:
    """A run at Weights & Biases."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    def send(self, lines: Sequence[NumberLine]) -> None:
        """Adds the numbers of the lines, by their names in metrics.jsonl."""
        for line in lines:
            self._run.log(numbers_of(line), step=line.step)

    def show(self, line: SampleLine) -> None:
        """Adds the answers as a table at their step."""
        import wandb

        rows = [[line.step, each.prompt, each.answer, each.expected] for each in line.samples]
        table = wandb.Table(columns=["step", "asked", "answered", "expected"], data=rows)
        self._run.log({SAMPLES: table}, step=line.step)

    def end(self, *, failed: bool) -> None:
        """Marks the run as finished or failed, and waits until wandb has received all numbers."""
        self._run.finish(exit_code=1 if failed else 0)


def check_wandb_login() -> None:
    """Checks, without using the network, whether wandb finds a key to log in with.

    It is wandb itself that looks: in the environment, in `.netrc`, where `wandb login` leaves it, and in its
    settings, each for the server of WANDB_BASE_URL. Raises FineTuneError (InvalidSpec) when there is none.
    """
    if any(os.environ.get(name) for name in CREDENTIALS):
        return  # wandb takes half a second to import, and has nothing to add
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    server = wandb_setup.singleton().settings.base_url
    try:
        found = wbauth.authenticate_session(
            host=server, source="finetune", prompt=False, update_session=False
        )
    except wandb.errors.Error as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"spec.logger.provider: wandb says: {error}"
        ) from error
    if found is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"spec.logger.provider: wandb needs a key for {server}; set WANDB_API_KEY, run `wandb login`,"
            " or set WANDB_MODE=offline to keep the run on disk",
        )


def start_wandb_run(spec: FineTuneJobSpec, config: LoggerConfig, name: str) -> WandbRun:
    """Starts a new run, with the spec's fields as its configuration and LLMForge's defaults.

    Raises FineTuneError: AccessDenied when wandb refuses the key, StorageError when it cannot be reached,
    InvalidSpec for a project, name or tag that it does not accept.
    """
    import wandb

    fields = published_fields(spec)
    model = str(fields["model_id"])
    tag = spec.custom_model_tag or name
    try:
        run = wandb.init(
            project=config.project or PROJECT,
            group=config.group or model,
            name=config.name or tag,
            tags=list(dict.fromkeys([*(config.tags or []), model[-LONGEST_TAG:], tag[-LONGEST_TAG:]])),
            config=fields,
            settings=wandb.Settings(console="off", quiet=True),
        )
    except wandb.errors.AuthenticationError as error:
        raise FineTuneError(
            FailureClass.ACCESS_DENIED, f"spec.logger: wandb does not accept the key that it found: {error}"
        ) from error
    except wandb.errors.CommError as error:
        raise FineTuneError(
            FailureClass.STORAGE_ERROR,
            f"spec.logger: wandb cannot be reached; try again, or set WANDB_MODE=offline: {error}",
        ) from error
    except (wandb.errors.Error, ValueError) as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"spec.logger.provider_config: wandb says: {error}"
        ) from error
    return WandbRun(run)
