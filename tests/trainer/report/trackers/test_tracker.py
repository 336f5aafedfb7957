from __future__ import annotations

import html
import json
import re
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from pydantic import JsonValue

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.report.metrics import Answer, EvaluationLine, NumberLine, SampleLine, StepLine
from finetune_trainer.report.trackers.tracker import Tracker, check_tracker, open_tracker
from finetune_trainer.report.trackers.wandb_run import WandbRun
from finetune_trainer.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


NUMBERS = {
    "epoch",
    "loss",
    "learningRate",
    "gradNorm",
    "tokens",
    "tokensPerSecond",
    "evalLoss",
    "perplexity",
}
"""The numbers of steps and validations that trackers get."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's store, created once, since creating its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def experiment() -> str:
    """A name that no other test uses."""
    return f"experiment-{uuid4().hex}"


@pytest.fixture(autouse=True)
def nothing_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def spec(provider: str, config: dict[str, JsonValue] | None = None, **fields: JsonValue) -> FineTuneJobSpec:
    document: dict[str, JsonValue] = {
        "model_id": "org/base",
        "train_path": "rows.jsonl",
        "lora_config": {"r": 4},
    }
    return read_spec(
        {**document, "logger": {"provider": provider, "provider_config": config or {}}, **fields}
    )


def mlflow_spec(database: Path, experiment: str, **fields: JsonValue) -> FineTuneJobSpec:
    return spec("mlflow", {"tracking_uri": f"sqlite:///{database}", "experiment_name": experiment}, **fields)


def step_line(step: int, loss: float = 2.5) -> StepLine:
    speed = None if step == 1 else 20.0
    return StepLine(
        step=step,
        epoch=step / 4,
        loss=loss,
        learning_rate=1e-4,
        grad_norm=0.5,
        tokens=100,
        tokens_per_second=speed,
        time=NOON,
    )


def evaluation_line(step: int) -> EvaluationLine:
    return EvaluationLine(
        step=step, epoch=step / 4, eval_loss=2.0, perplexity=7.389, checkpoint="epoch-0", time=NOON
    )


ASKED, SAID, WANTED = "Who *are* <b>you</b>?\n| Say |", "Ünder_stand_ing\n\n  yes", "A model."


def sample_line(step: int, *more: Answer) -> SampleLine:
    said = [Answer(prompt=ASKED, answer=f"{SAID} {step}", expected=WANTED), *more]
    return SampleLine(step=step, epoch=step / 4, samples=said, seconds=1.5, checkpoint=None, time=NOON)


def log_answers(tracker: Tracker) -> None:
    """The answers before training and after a step, among numbers."""
    tracker.log(evaluation_line(0))
    tracker.log(sample_line(0))
    tracker.log(step_line(1))
    tracker.log(evaluation_line(1))
    tracker.log(sample_line(1, Answer(prompt="And?", answer="")))
    tracker.log(step_line(2))


TABLE = [
    [0, ASKED, f"{SAID} 0", WANTED],
    [1, ASKED, f"{SAID} 1", WANTED],
    [1, "And?", "", None],
]
"""Those answers: step, question, answer, and what the validation row answers."""


def client(database: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{database}")


def only_run(database: Path, experiment: str) -> Run:
    found = client(database).get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client(database).search_runs([found.experiment_id])
    return run


def history(database: Path, run: Run, key: str) -> list[tuple[int, float]]:
    return [
        (metric.step, metric.value) for metric in client(database).get_metric_history(run.info.run_id, key)
    ]


def train_a_step_and_stop(tracker: Tracker) -> None:
    tracker.log(step_line(1))
    raise KeyboardInterrupt


def problem(spec: FineTuneJobSpec) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised, open_tracker(spec, "job"):
        pass
    return raised.value


# Without a tracker


def test_no_package_is_imported_unless_asked_for() -> None:
    program = """
import sys
from finetune_api.manifest import read_spec
from finetune_trainer.report.trackers.tracker import check_tracker, open_tracker
spec = read_spec({"model_id": "org/base", "train_path": "rows.jsonl"})
check_tracker(spec)
with open_tracker(spec, "job") as tracker:
    tracker.log(None)
print({"mlflow", "tensorboard", "torch", "wandb"} & sys.modules.keys())
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert outcome.stdout.strip() == "set()"


@pytest.mark.parametrize("provider", ["mlflow", "tensorboard", "wandb"])
def test_a_missing_package_is_found_before_training(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, provider, None)

    with pytest.raises(FineTuneError) as raised:
        check_tracker(spec(provider))

    assert raised.value.failure_class == FailureClass.INVALID_SPEC
    assert str(raised.value).startswith(
        f"spec.logger.provider: {provider} is not installed; pip install 'finetune-operator[{provider}]'"
    )


def test_a_folder_called_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    with pytest.raises(FineTuneError, match="wandb is not installed"):
        check_tracker(spec("wandb"))


# MLflow


def test_mlflow_gets_the_numbers_of_every_line_at_its_step(database: Path, experiment: str) -> None:
    with open_tracker(mlflow_spec(database, experiment), "job") as tracker:
        tracker.log(step_line(1, loss=3.0))
        tracker.log(step_line(2, loss=2.5))
        tracker.log(evaluation_line(2))

    run = only_run(database, experiment)
    assert history(database, run, "loss") == [(1, 3.0), (2, 2.5)]
    assert history(database, run, "tokensPerSecond") == [(2, 20.0)]
    assert history(database, run, "evalLoss") == [(2, 2.0)]
    assert run.data.metrics.keys() == NUMBERS
    assert (
        client(database).get_metric_history(run.info.run_id, "loss")[0].timestamp == NOON.timestamp() * 1000
    )


def test_mlflow_gets_answers_as_a_table(
    database: Path, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    client(database).create_experiment(experiment, artifact_location=str(tmp_path / "artifacts"))

    with open_tracker(mlflow_spec(database, experiment), "job") as tracker:
        log_answers(tracker)

    assert tracker.lost is None
    run = only_run(database, experiment)
    table = client(database).load_table(run.info.experiment_id, "samples.json", [run.info.run_id])
    assert list(table.columns) == ["step", "asked", "answered", "expected"]
    assert table.astype(object).where(table.notna(), None).to_numpy().tolist() == TABLE
    assert json.loads((tmp_path / "artifacts" / run.info.run_id / "artifacts/samples.json").read_text()) == {
        "columns": list(table.columns),
        "data": TABLE,
    }
    assert history(database, run, "loss") == [(1, 2.5), (2, 2.5)]


def test_answers_that_mlflow_does_not_take_are_told_and_numbers_arrive(
    database: Path, experiment: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    client(database).create_experiment(experiment, artifact_location=str(tmp_path / "file/below"))

    with open_tracker(mlflow_spec(database, experiment), "job") as tracker:
        log_answers(tracker)

    assert history(database, only_run(database, experiment), "loss") == [(1, 2.5), (2, 2.5)]
    assert tracker.lost is not None
    assert tracker.lost.startswith("mlflow did not get 2 of 6 points of this run (metrics.jsonl has them): ")


def test_mlflow_is_told_the_fields_that_were_set_and_no_secret(database: Path, experiment: str) -> None:
    with open_tracker(
        mlflow_spec(
            database,
            experiment,
            train_path="s3://key:pass%2Fword@bucket/rows.jsonl",
            num_epochs=3,
            worker_resources={"accelerator_type:A10G": 0.001},
            lora_config={"r": 4, "target_modules": ["q_proj", "v_proj"]},
            cluster={"env": [{"name": "HF_TOKEN", "value": "hidden"}]},
        ),
        "job",
    ):
        pass

    assert only_run(database, experiment).data.params == {
        "model_id": "org/base",
        "train_path": "s3://bucket/rows.jsonl",
        "num_epochs": "3",
        "worker_resources": '{"accelerator_type:A10G": 0.001}',
        "lora_config.r": "4",
        "lora_config.target_modules": '["q_proj", "v_proj"]',
    }


def test_no_secret_of_files_that_are_mixed_is_told(database: Path, experiment: str) -> None:
    files: JsonValue = [{"path": "s3://key:word@bucket/a.jsonl", "weight": 2}, {"path": "b.jsonl"}]
    with open_tracker(mlflow_spec(database, experiment, train_path=files), "job"):
        pass

    said = only_run(database, experiment).data.params["train_path"]
    assert json.loads(said) == [{"path": "s3://bucket/a.jsonl", "weight": 2}, {"path": "b.jsonl"}]


@pytest.mark.parametrize(("tag", "name"), [(None, "job"), ("our-model", "our-model")])
def test_the_run_is_called_by_the_tag_or_else_by_the_job(
    database: Path, experiment: str, tag: str | None, name: str
) -> None:
    with open_tracker(mlflow_spec(database, experiment, custom_model_tag=tag), "job"):
        pass

    run = only_run(database, experiment)
    assert (run.info.run_name, run.info.status) == (name, "FINISHED")


def test_a_run_whose_training_raises_is_marked_failed(database: Path, experiment: str) -> None:
    with pytest.raises(KeyboardInterrupt), open_tracker(mlflow_spec(database, experiment), "job") as tracker:
        train_a_step_and_stop(tracker)

    run = only_run(database, experiment)
    assert run.info.status == "FAILED"
    assert history(database, run, "loss") == [(1, 2.5)]


def test_an_experiment_that_is_absent_and_shall_not_be_made_is_an_error(
    database: Path, experiment: str
) -> None:
    config: dict[str, JsonValue] = {
        "tracking_uri": f"sqlite:///{database}",
        "experiment_name": experiment,
        "create_experiment_if_not_exists": False,
    }

    error = problem(spec("mlflow", config))

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert str(error).startswith(
        f"spec.logger.provider_config.experiment_name: {experiment} is not at the tracking server; make it"
    )
    assert client(database).get_experiment_by_name(experiment) is None


def test_an_experiment_that_is_there_is_used_again(database: Path, experiment: str) -> None:
    expected = client(database).create_experiment(experiment)
    config: dict[str, JsonValue] = {
        "tracking_uri": f"sqlite:///{database}",
        "experiment_name": experiment,
        "create_experiment_if_not_exists": False,
    }

    with open_tracker(spec("mlflow", config), "job"):
        pass

    assert only_run(database, experiment).info.experiment_id == expected


def test_a_server_that_cannot_be_reached_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    error = problem(spec("mlflow", {"tracking_uri": "http://127.0.0.1:9"}))

    assert error.failure_class == FailureClass.STORAGE_ERROR
    assert str(error).startswith("spec.logger.provider_config.tracking_uri: ")
    assert "127.0.0.1" in str(error)


def test_an_address_that_mlflow_does_not_take_is_an_error_of_the_spec() -> None:
    error = problem(spec("mlflow", {"tracking_uri": "nonsense://somewhere"}))

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert "nonsense" in str(error)


def test_a_tracker_that_fails_in_the_middle_says_how_much_it_did_not_get_and_training_goes_on(
    database: Path, experiment: str
) -> None:
    with open_tracker(mlflow_spec(database, experiment), "job") as tracker:
        tracker.log(step_line(1))
        until(lambda: len(history(database, only_run(database, experiment), "loss")) == 1)
        # MLflow takes no numbers for a run that was deleted.
        client(database).delete_run(only_run(database, experiment).info.run_id)
        for step in (2, 3):
            tracker.log(step_line(step))
        until(lambda: tracker.lost is not None)

    assert tracker.lost is not None
    assert tracker.lost.startswith("mlflow did not get 2 of 3 points of this run (metrics.jsonl has them): ")
    assert len(tracker.lost.splitlines()) == 1


def test_a_tracker_that_gets_all_has_lost_nothing(database: Path, experiment: str) -> None:
    with open_tracker(mlflow_spec(database, experiment), "job") as tracker:
        tracker.log(step_line(1))

    assert tracker.lost is None


def test_where_there_is_no_tracker_nothing_is_lost() -> None:
    with open_tracker(read_spec({"model_id": "org/base", "train_path": "rows.jsonl"}), "job") as tracker:
        tracker.log(step_line(1))

    assert tracker.lost is None


def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds, for 20 s at most."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """A lock on the database, as long as which the store does not answer."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_a_tracker_that_is_slow_holds_up_no_step(database: Path, experiment: str) -> None:
    with open_tracker(mlflow_spec(database, experiment), "job") as tracker:
        began = time.monotonic()
        with locked(database):
            for step in range(1, 11):
                tracker.log(step_line(step))
            passed = time.monotonic() - began

    assert passed < 0.5
    assert len(history(database, only_run(database, experiment), "loss")) == 10


def test_all_lines_that_waited_arrive(database: Path, experiment: str) -> None:
    with open_tracker(mlflow_spec(database, experiment), "job") as tracker, locked(database):
        for step in range(1, 401):
            tracker.log(step_line(step))

    assert len(history(database, only_run(database, experiment), "loss")) == 400


def test_more_lines_than_may_wait_are_left_out_and_said_to_be_missing(
    database: Path, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.report.trackers.tracker.MOST_LINES", 3)
    with open_tracker(mlflow_spec(database, experiment), "job") as tracker, locked(database):
        for step in range(1, 11):
            tracker.log(step_line(step))

    arrived = len(history(database, only_run(database, experiment), "loss"))
    assert 3 <= arrived < 10
    assert tracker.lost == (
        f"mlflow did not get {10 - arrived} of 10 points of this run (metrics.jsonl has them):"
        " it is too slow: 3 points waited"
    )


def test_the_end_of_training_waits_only_so_long(
    database: Path, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.report.trackers.tracker.CLOSING_SECONDS", 0.2)
    with ExitStack() as training:
        tracker = training.enter_context(open_tracker(mlflow_spec(database, experiment), "job"))
        with locked(database):
            began = time.monotonic()
            training.close()
            passed = time.monotonic() - began

    assert passed < 2
    assert tracker.lost == (
        "mlflow did not get all numbers of this run (metrics.jsonl has them): no answer within 0.2 s"
    )


# wandb


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of wandb's offline runs."""
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    yield tmp_path
    # wandb reads the environment once in its life.
    wandb.teardown()


def wandb_records(directory: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind in the only run.

    They are protocol buffers in LevelDB's log format, after a header of 7 bytes.
    """
    import wandb
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    wandb.teardown()  # it writes the rest
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    content = path.read_bytes()
    records = []
    position, message = 7, b""
    while position < len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, fragment = struct.unpack_from("<IHB", content, position)
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if fragment in (1, 4):  # a whole message, or the last part of one
            records.append(MessageToDict(Record.FromString(message), preserving_proto_field_name=True))
            message = b""
    return [record[kind] for record in records if kind in record]


def test_wandb_gets_lines_names_and_llmforges_defaults(wandb_offline: Path) -> None:
    with open_tracker(spec("wandb", {"tags": ["ours"]}, custom_model_tag="our-model"), "job") as tracker:
        tracker.log(step_line(1, loss=3.0))
        tracker.log(step_line(2, loss=2.5))
        tracker.log(evaluation_line(2))

    run = wandb_records(wandb_offline, "run")[0]
    assert (run["project"], run["run_group"], run["display_name"]) == ("llmforge", "org/base", "our-model")
    assert set(run["tags"]) == {"ours", "org/base", "our-model"}
    config = {item["key"]: json.loads(item["value_json"]) for item in run["config"]["update"]}
    assert (
        config.items()
        >= {
            "model_id": "org/base",
            "lora_config.r": 4,
            "custom_model_tag": "our-model",
        }.items()
    )
    lines = [
        {item["nested_key"][0]: json.loads(item["value_json"]) for item in line["item"]}
        for line in wandb_records(wandb_offline, "history")
    ]
    assert [(line["_step"], line["loss"], line.get("evalLoss")) for line in lines] == [
        (1, 3.0, None),
        (2, 2.5, 2.0),
    ]
    assert [end.get("exit_code", 0) for end in wandb_records(wandb_offline, "exit")] == [0]


def test_wandb_gets_answers_as_a_table_at_their_step(wandb_offline: Path) -> None:
    with open_tracker(spec("wandb"), "job") as tracker:
        log_answers(tracker)

    assert tracker.lost is None
    lines = [
        {tuple(item["nested_key"]): json.loads(item["value_json"]) for item in line["item"]}
        for line in wandb_records(wandb_offline, "history")
    ]
    assert [line[("_step",)] for line in lines] == [0, 1, 2]
    assert (lines[1][("loss",)], lines[2][("loss",)]) == (2.5, 2.5)
    (files,) = wandb_offline.glob("wandb/offline-run-*/files")
    tables = [json.loads((files / line[("samples", "path")]).read_text()) for line in lines[:2]]
    assert [table["columns"] for table in tables] == [["step", "asked", "answered", "expected"]] * 2
    assert [row for table in tables for row in table["data"]] == TABLE


def test_numbers_and_answers_that_waited_arrive_in_their_order(
    wandb_offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, logged = WandbRun.send, Event()

    def send_later(run: WandbRun, lines: Sequence[NumberLine]) -> None:
        logged.wait(20)
        send(run, lines)

    monkeypatch.setattr(WandbRun, "send", send_later)
    with open_tracker(spec("wandb"), "job") as tracker:
        for line in (step_line(1), step_line(2), step_line(3), sample_line(3), step_line(4)):
            tracker.log(line)
        logged.set()

    steps = [
        json.loads(item["value_json"])
        for line in wandb_records(wandb_offline, "history")
        for item in line["item"]
        if item["nested_key"] == ["_step"]
    ]
    assert steps == [1, 2, 3, 4], "wandb leaves out what is at a step before one that it has"


def test_wandbs_own_settings_are_taken_and_a_failed_run_is_marked(wandb_offline: Path) -> None:
    config: dict[str, JsonValue] = {"project": "p", "group": "g", "name": "n", "tags": ["org/base"]}
    with pytest.raises(KeyboardInterrupt), open_tracker(spec("wandb", config), "job") as tracker:
        train_a_step_and_stop(tracker)

    run = wandb_records(wandb_offline, "run")[0]
    assert (run["project"], run["run_group"], run["display_name"], sorted(run["tags"])) == (
        "p",
        "g",
        "n",
        ["job", "org/base"],
    )
    assert [end["exit_code"] for end in wandb_records(wandb_offline, "exit")] == [1]


def test_a_long_path_to_the_model_makes_a_tag_that_wandb_takes(wandb_offline: Path) -> None:
    with open_tracker(spec("wandb", model_id="/models" + "/deeper" * 20), "job"):
        pass

    run = wandb_records(wandb_offline, "run")[0]
    assert max(len(tag) for tag in run["tags"]) == 64


@pytest.mark.parametrize("config", [{"project": "a/b"}, {"tags": ["x" * 65]}])
def test_what_wandb_does_not_take_is_an_error_of_the_spec(
    config: dict[str, JsonValue], wandb_offline: Path
) -> None:
    error = problem(spec("wandb", config))

    assert error.failure_class == FailureClass.INVALID_SPEC
    assert str(error).startswith("spec.logger.provider_config: wandb says: ")
    assert not list(wandb_offline.glob("wandb/offline-run-*"))


@pytest.fixture
def no_wandb_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty file for `.netrc`, and nothing else that logs in."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / ".netrc"
    netrc.write_text("")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield netrc
    # wandb reads the environment once in its life.
    wandb.teardown()


def test_wandb_without_a_key_is_found_before_training(no_wandb_login: Path) -> None:
    del no_wandb_login
    with pytest.raises(FineTuneError) as raised:
        check_tracker(spec("wandb"))

    assert raised.value.failure_class == FailureClass.INVALID_SPEC
    assert re.match(
        r"spec\.logger\.provider: wandb needs a key for https://\S+; set WANDB_API_KEY, run `wandb login`",
        str(raised.value),
    )


def test_wandb_that_was_logged_in_to_may_start(no_wandb_login: Path) -> None:
    no_wandb_login.write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")

    check_tracker(spec("wandb"))


def test_a_login_to_another_server_is_none(no_wandb_login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_wandb_login.write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")

    with pytest.raises(FineTuneError, match=r"needs a key for https://wandb\.example\.com"):
        check_tracker(spec("wandb"))


def test_a_login_that_is_no_key_is_told_in_wandbs_words(no_wandb_login: Path) -> None:
    no_wandb_login.write_text("machine api.wandb.ai login user password short\n")

    with pytest.raises(FineTuneError, match=r"^spec\.logger\.provider: wandb says: ") as raised:
        check_tracker(spec("wandb"))

    assert "short" not in str(raised.value).partition("says: ")[2].replace("too short", "")


@pytest.mark.parametrize(
    "variable", [("WANDB_API_KEY", "key"), ("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled")]
)
def test_wandb_with_a_key_or_without_a_service_may_start(
    variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(*variable)

    check_tracker(spec("wandb"))


# TensorBoard


def events_in(directory: Path) -> EventAccumulator:
    """What TensorBoard reads, with every point."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()


def points(directory: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events_in(directory).Scalars(name)]


def run_in(tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(str(tmp_path / "default/job-0123456789"))


def test_tensorboard_gets_the_numbers_of_every_line_at_its_step_and_time(tmp_path: Path) -> None:
    with open_tracker(spec("tensorboard"), "job", run_in(tmp_path)) as tracker:
        tracker.log(step_line(1, loss=3.0))
        tracker.log(step_line(2, loss=2.5))
        tracker.log(evaluation_line(2))

    directory = tmp_path / "default/job-0123456789/tensorboard"
    events = events_in(directory)
    assert set(events.Tags()["scalars"]) == NUMBERS
    assert points(directory, "loss") == [(1, 3.0), (2, 2.5)]
    assert points(directory, "evalLoss") == [(2, 2.0)]
    assert {event.wall_time for event in events.Scalars("loss")} == {NOON.timestamp()}
    assert tracker.lost is None


def test_tensorboard_shows_the_fields_that_were_set_and_no_secret(tmp_path: Path) -> None:
    job = spec(
        "tensorboard",
        train_path="s3://key:pass%2Fword@bucket/rows.jsonl",
        cluster={"env": [{"name": "HF_TOKEN", "value": "hidden"}]},
    )
    with open_tracker(job, "job", run_in(tmp_path)) as tracker:
        tracker.log(step_line(1))

    [event] = events_in(tmp_path / "default/job-0123456789/tensorboard").Tensors("spec/text_summary")
    assert event.tensor_proto.string_val[0].decode() == (
        "    model_id: org/base\n    train_path: s3://bucket/rows.jsonl\n    lora_config.r: 4\n"
    )


def test_tensorboard_shows_the_answers_to_each_question_as_they_are(tmp_path: Path) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    with open_tracker(spec("tensorboard"), "job", run_in(tmp_path)) as tracker:
        log_answers(tracker)

    assert tracker.lost is None
    directory = tmp_path / "default/job-0123456789/tensorboard"
    first = events_in(directory).Tensors("samples/1/text_summary")
    assert [(event.step, event.wall_time) for event in first] == [
        (0, NOON.timestamp()),
        (1, NOON.timestamp()),
    ]
    shown = [markdown_to_safe_html(event.tensor_proto.string_val[0]) for event in first]
    assert [re.findall("(?s)<code>(.*?)\n</code>", html.unescape(each)) for each in shown] == [
        [ASKED, f"{SAID} {step}", WANTED] for step in (0, 1)
    ]
    assert re.findall("<strong>(.*?)</strong>", shown[0]) == ["asked", "answered", "expected"]
    (event,) = events_in(directory).Tensors("samples/2/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "**asked**\n\n    And?\n\n**answered**\n\n"
    assert points(directory, "loss") == [(1, 2.5), (2, 2.5)]


def test_a_run_that_is_resumed_shows_each_step_once(tmp_path: Path) -> None:
    for first in (1, 3):
        with open_tracker(spec("tensorboard"), "job", run_in(tmp_path)) as tracker:
            for step in range(first, 6):
                tracker.log(step_line(step, loss=float(10 * first + step)))
        time.sleep(1.1)  # the name of an event file has the second in which it was made

    assert points(tmp_path / "default/job-0123456789/tensorboard", "loss") == [
        (1, 11.0),
        (2, 12.0),
        (3, 33.0),
        (4, 34.0),
        (5, 35.0),
    ]


def test_a_directory_for_all_runs_gets_a_folder_for_each(tmp_path: Path) -> None:
    job = spec("tensorboard", {"log_dir": str(tmp_path / "all")})
    with open_tracker(job, "job", run_in(tmp_path)) as tracker:
        tracker.log(step_line(1))

    assert points(tmp_path / "all/job-0123456789", "loss") == [(1, 2.5)]
    assert not (tmp_path / "default").exists()


def test_runs_in_object_storage_need_a_directory_for_tensorboard(s3_bucket: str, tmp_path: Path) -> None:
    run = RunDirectory.open(f"s3://{s3_bucket}/runs/job-0123456789")

    with pytest.raises(FineTuneError) as raised:
        check_tracker(spec("tensorboard"), run)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    assert str(raised.value).startswith(
        "spec.logger.provider_config.log_dir: must be set where a run is in object storage"
    )
    check_tracker(spec("tensorboard", {"log_dir": str(tmp_path)}), run)


@pytest.mark.parametrize("path", ["s3://bucket/events", "pvc://claim/events"])
def test_tensorboard_does_not_write_where_this_machine_sees_no_directory(path: str, tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match=f"log_dir: {path} is no directory that this machine sees"):
        check_tracker(spec("tensorboard", {"log_dir": path}), run_in(tmp_path))


def test_a_directory_that_cannot_be_made_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = problem(spec("tensorboard", {"log_dir": str(tmp_path / "file/below")}))

    assert error.failure_class is FailureClass.STORAGE_ERROR
    assert str(tmp_path / "file") in str(error)
