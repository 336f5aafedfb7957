"""Uploads a checkpoint of a run, or the model it makes with its base, to a hub."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.checkpoint.chosen import chosen
from finetune_trainer.model.contents import ADAPTER_CONFIG
from finetune_trainer.report.background import Background
from finetune_trainer.storage.local import sizes_of
from finetune_trainer.storage.run_directory import CARD, COMPLETE

STATE = "state"
"""The folder of a checkpoint that only resuming needs."""
MAIN = "main"

_NAME = re.compile(r"[^/\s]+/[^/\s]+")
_OF_A_BASE = "base_model:"
"""What tags begin with that name the base model, as PEFT writes them."""
_ON_A_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_OF_A_MODEL = re.compile(
    r"(adapter_)?(config\.json|model\.safetensors)|model-\d+-of-\d+\.safetensors"
    r"|model\.safetensors\.index\.json|quantization_config\.json"
)
"""Files that an earlier push must not leave: an adapter beside a whole model would be loaded on it."""


class Stage(StrEnum):
    """What is done, once the hub knows the token."""

    MERGING = "merging"
    UPLOADING = "uploading"


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now."""

    address: str
    """Of the page that shows it."""
    name: str
    revision: str | None
    """The branch; None for the main one."""
    checkpoint: str
    """The path of what was uploaded, or merged first."""
    files: int
    remarks: list[str]
    commit: str
    """The revision that has it, whatever is pushed later."""


def push(
    run: str,
    name: str,
    *,
    checkpoint: str | None = None,
    merged: bool = False,
    public: bool = False,
    revision: str | None = None,
    message: str | None = None,
    tell: Callable[[Stage], None] = lambda _: None,
) -> Pushed:
    """Uploads what inference needs of a checkpoint to `name` on the hub, in one commit.

    `run` and `checkpoint` say which checkpoint (see `chosen`). With `merged` the adapter is merged into its
    base first, and the whole model is uploaded. The repository is made if it is not there, private unless
    `public`; so is the branch `revision`. The hub is HF_ENDPOINT's, and the token HF_TOKEN's or that of
    `hf auth login`. Other files of the repository stay, but for weights that an earlier push has left. Where
    all of it is there already, no commit is made. `tell` is called before each stage.

    Raises FineTuneError: InvalidSpec for a name that is none, or for a public repository without `public`;
    AccessDenied without a token, or when the hub refuses it; ModelNotFound as `chosen` does; StorageError
    when the hub cannot be reached; and all that `merge` raises. The hub is written to last.
    """
    token = _token(name)
    source = chosen(run, checkpoint)
    api = HfApi(token=token)
    explained = partial(_explained, name, revision, token)
    with explained():
        api.whoami()
        remarks = [] if public else _refuse_public(api, name)
    with ExitStack() as opened:
        if merged:
            tell(Stage.MERGING)
            from finetune_trainer.export.merge import merge

            directory = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "merged"
            remarks += merge(source.path, directory)
        else:
            directory = opened.enter_context(source.local_copy())
        tell(Stage.UPLOADING)
        opened.enter_context(explained())
        base = _base(directory)
        if base is not None and not _ON_A_HUB.fullmatch(base):
            remarks.append(
                f"the adapter's base model is {base}, which is not on a hub: who has it loads the base,"
                f" and then the adapter by PeftModel.from_pretrained(base, {name!r}); --merge uploads a"
                " whole model"
            )
        additions = [_addition(directory, file, base) for file in _for_inference(directory)]
        api.create_repo(name, private=not public, exist_ok=True)
        if revision is not None and revision != MAIN and not revision.startswith("refs/"):
            api.create_branch(name, branch=revision, exist_ok=True)
        new = {addition.path_in_repo for addition in additions}
        leftovers = [
            file
            for file in api.list_repo_files(name, revision=revision)
            if _OF_A_MODEL.fullmatch(file) and file not in new
        ]
        commit = api.create_commit(
            name,
            [*(CommitOperationDelete(file, is_folder=False) for file in leftovers), *additions],
            commit_message=message
            or f"{'Merged model' if merged else 'Checkpoint'} of {source.path.rpartition('/')[2]}",
            revision=revision,
        )
    address = f"{api.endpoint}/{name}" + (f"/tree/{revision}" if revision else "")
    return Pushed(address, name, revision, source.path, len(additions), remarks, commit.oid)


SECONDS_TO_ANSWER = 10.0
"""For a hub that is asked before training."""


def check_hub(name: str, *, public: bool) -> list[str]:
    """Checks before training whether `push` can do its work, and returns remarks on what speaks against it.

    Raises FineTuneError for what can be known without the hub: InvalidSpec for a name that is none,
    AccessDenied without a token or where HF_HUB_OFFLINE is set. What the hub says is a remark only, since it
    may say otherwise when training is over; so is that it does not answer in `SECONDS_TO_ANSWER`.
    """
    token = _token(name)
    asked = Background(partial(_hub_remarks, name, token, public=public), "hub")
    if not asked.wait(SECONDS_TO_ANSWER):
        return [f"{name}: {constants.ENDPOINT} does not answer; it is asked again when training is over"]
    return asked.result()


def _hub_remarks(name: str, token: str, *, public: bool) -> list[str]:
    api, owner = HfApi(token=token), name.partition("/")[0]
    try:
        with _explained(name, None, token):
            who = api.whoami()
            if not public:
                _refuse_public(api, name, "spec.output.public: true")
    except FineTuneError as error:
        return list(error.problems)
    # Of a token with rights of its own for each repository, only writing shows what it may.
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        return [f"{name}: the token may only read; set HF_TOKEN to one that may write models of {owner}"]
    owners = [str(who.get("name")), *(str(each.get("name")) for each in who.get("orgs") or [])]
    if owner not in owners:
        known = ", ".join(owners)
        return [f"{name}: the token is that of {owners[0]}, who writes models of {known}, not of {owner}"]
    return []


def check_name(name: str) -> str | None:
    """What is wrong with the name of a repository, and what would be right; None for OWNER/NAME."""
    try:
        if not _NAME.fullmatch(name):
            return f"{name}: is not the name of a model on a hub; write OWNER/NAME"
        validate_repo_id(name)
    except HFValidationError as error:
        return f"{name}: is not the name of a model on a hub: {_one_line(str(error))}"
    return None


def _token(name: str) -> str:
    """The token to write with, once all that can be known without the hub is right."""
    token = get_token()
    problems = [problem for problem in [check_name(name)] if problem is not None]
    failure_class = FailureClass.INVALID_SPEC if problems else FailureClass.ACCESS_DENIED
    if token is None:
        problems.append(
            f"{constants.ENDPOINT}: takes models only with a token: set HF_TOKEN to one that may write, or"
            " run `hf auth login`"
        )
    if constants.HF_HUB_OFFLINE:
        problems.append("HF_HUB_OFFLINE: is set, and so no hub is written to; unset it")
    if token is None or problems:
        raise FineTuneError(failure_class, *problems)
    return token


def _refuse_public(api: HfApi, name: str, asked_for: str = "--public") -> list[str]:
    try:
        public = api.model_info(name).private is False
    except RepositoryNotFoundError:
        return []
    if public:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{name}: is there already, for all to see; say {asked_for} if this model may be seen too",
        )
    return []


def _for_inference(directory: Path) -> list[str]:
    return [file for file in sizes_of(directory) if file.partition("/")[0] not in (STATE, COMPLETE)]


def _addition(directory: Path, file: str, base: str | None) -> CommitOperationAdd:
    if file == CARD:
        return CommitOperationAdd(file, _card((directory / file).read_text(encoding="utf-8"), base).encode())
    return CommitOperationAdd(file, directory / file)


def _card(text: str, base: str | None) -> str:
    """A model card whose base model is one that hubs know: they take no card that names a directory.

    PEFT writes where the base model was loaded from, be it from a hub.
    """
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except ValueError:
        return text  # the hub says what is wrong
    named = card.data.get("base_model") or []
    tags = card.data.get("tags") or []
    paths = [each for each in ([named] if isinstance(named, str) else named) if not _ON_A_HUB.fullmatch(each)]
    stay = [tag for tag in tags if not tag.startswith(_OF_A_BASE) or _ON_A_HUB.fullmatch(tag.split(":")[-1])]
    if not paths and stay == tags:
        return text
    if paths:
        card.data["base_model"] = base if base is not None and _ON_A_HUB.fullmatch(base) else None
    card.data["tags"] = stay or None
    return str(card)


def _base(directory: Path) -> str | None:
    """What the adapter in a directory names as its base model; None where there is none."""
    file = directory / ADAPTER_CONFIG
    named = (
        json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if file.is_file()
        else None
    )
    return named if isinstance(named, str) else None


@contextmanager
def _explained(name: str, revision: str | None, token: str) -> Iterator[None]:
    """Turns what the hub answers into FineTuneErrors that a person can act on, without the token."""
    hub = constants.ENDPOINT
    try:
        yield
    except FineTuneError:
        raise
    except RevisionNotFoundError as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{name}: {hub} has no revision {revision} of it, and cannot make it"
        ) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise FineTuneError(
            FailureClass.ACCESS_DENIED,
            f"{name}: {hub} has no such model for this token to write to; check the owner, and the token's"
            " rights",
        ) from error
    except HfHubHTTPError as error:
        raise _answer(error, name, token) from error
    except Exception as error:  # clients raise errors of their HTTP and storage libraries
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and not isinstance(error, ValueError):
            raise _answer(cause, name, token) from error
        said = _one_line(str(error) or type(error).__name__).replace(token, "***")
        refused = isinstance(error, ValueError)
        raise FineTuneError(
            FailureClass.INVALID_SPEC if refused else FailureClass.STORAGE_ERROR,
            f"{name}: {hub} does not take it: {said}"
            if refused
            else f"{name}: {hub} cannot be reached ({said}); try again with a network",
        ) from error


def _answer(error: HfHubHTTPError, name: str, token: str) -> FineTuneError:
    hub, status = constants.ENDPOINT, error.response.status_code
    said = _one_line(error.server_message or "").replace(token, "***")
    because = f" ({said})" if said else ""
    if status == HTTPStatus.UNAUTHORIZED:
        return FineTuneError(
            FailureClass.ACCESS_DENIED,
            f"{name}: {hub} does not know the token{because}; set HF_TOKEN to one that may write",
        )
    if status == HTTPStatus.FORBIDDEN:
        owner = name.partition("/")[0]
        return FineTuneError(
            FailureClass.ACCESS_DENIED,
            f"{name}: {hub} refuses it{because}; the token must be one that may write models of {owner}",
        )
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
        return FineTuneError(
            FailureClass.INVALID_SPEC, f"{name}: {hub} does not take it{because or f': {status}'}"
        )
    return FineTuneError(
        FailureClass.STORAGE_ERROR, f"{name}: {hub} fails with {status}{because}; try again later"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
