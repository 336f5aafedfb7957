"""A job's rows are those of its files, as often as it says, without those that are held out."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.trainer.plan.test_prepare import write_rows
from tests.trainer.training_jobs import LORA, spec_of

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.plan.kept_tokens import TokensToKeep, tokens_of
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.storage.run_directory import RunDirectory

A = [(f"A{number}?", "Yes.") for number in range(40)]
B = [(f"B{number}?", "No.") for number in range(20)]


@pytest.fixture
def a(tmp_path: Path) -> str:
    return write_rows(tmp_path / "a.jsonl", *A)


@pytest.fixture
def b(tmp_path: Path) -> str:
    return write_rows(tmp_path / "b.jsonl", *B)


def prepared(model: Path, train: JsonValue, **fields: JsonValue) -> Prepared:
    chosen: dict[str, JsonValue] = {"valid_path": None, "task": "instruction_tuning", **fields}
    return prepare(spec_of(model, LORA, train_path=train, **chosen))


def rows_of(rows: TokenizedRows | None) -> Counter[tuple[int, ...]]:
    assert rows is not None
    return Counter(tuple(rows.row(index)[0].tolist()) for index in range(len(rows)))


def test_files_are_mixed_as_they_are_weighed(tiny_model: Path, a: str, b: str) -> None:
    alone = [rows_of(prepared(tiny_model, path).train) for path in (a, b)]

    found = prepared(
        tiny_model, [{"path": a, "weight": 0.5}, {"path": b, "weight": 2}, {"path": b, "rows": 7}]
    )

    rows = rows_of(found.train)
    of_a = {row: count for row, count in rows.items() if row in alone[0]}
    of_b = {row: count for row, count in rows.items() if row in alone[1]}
    assert sorted(of_a.values()) == [1] * 20
    assert sorted(of_b.values()) == [2] * 13 + [3] * 7
    assert found.plan.rows == 20 + 40 + 7 == sum(rows.values())
    assert f"{a}: an epoch has 20 rows of its 40" in found.warnings
    assert found.fingerprint == prepared(
        tiny_model, [{"path": a, "weight": 0.5}, {"path": b, "weight": 2}, {"path": b, "rows": 7}]
    ).fingerprint  # fmt: skip


def test_one_file_in_a_list_is_that_file(tiny_model: Path, a: str) -> None:
    assert prepared(tiny_model, [{"path": a}]).fingerprint == prepared(tiny_model, a).fingerprint
    assert prepared(tiny_model, [{"path": a, "weight": 1}]).fingerprint == prepared(tiny_model, a).fingerprint


def test_what_is_held_out_is_not_trained_on_though_it_is_there_twice(
    tiny_model: Path, a: str, b: str, tmp_path: Path
) -> None:
    every = rows_of(prepared(tiny_model, [{"path": a}, {"path": b}]).train)
    again = write_rows(tmp_path / "again.jsonl", *B, *A[:20])

    found = prepared(tiny_model, [{"path": a, "weight": 3}, {"path": again}], valid_fraction=0.25)
    turned = prepared(tiny_model, [{"path": again}, {"path": a}], valid_fraction=0.25, learning_rate=1e-2)

    train, held = rows_of(found.train), rows_of(found.validation)
    assert not train.keys() & held.keys()
    assert train.keys() | held.keys() == every.keys()
    assert 5 <= len(held) <= 25
    assert max(held.values()) == 2, "once for each file"
    assert rows_of(turned.validation).keys() == held.keys()
    assert found.plan.validation_rows == sum(held.values())
    assert any(f"{sum(held.values())} of 80 rows are held out" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("fraction", "what"), [(1e-9, "holds out none of the rows"), (1 - 1e-9, "holds out all")]
)
def test_a_fraction_that_leaves_one_side_empty_is_refused(
    tiny_model: Path, a: str, fraction: float, what: str
) -> None:
    with pytest.raises(FineTuneError, match=what) as raised:
        prepared(tiny_model, a, valid_fraction=fraction)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC


def test_a_row_that_is_wrong_is_told_with_its_own_file(tiny_model: Path, a: str, tmp_path: Path) -> None:
    long = {"prompt": "x " * 100, "completion": " y"}
    (tmp_path / "long.json").write_text(json.dumps([{"prompt": "x", "completion": " y"}, long]))

    with pytest.raises(FineTuneError) as raised:
        prepared(
            tiny_model, [{"path": a, "weight": 0.1}, {"path": f"{tmp_path}/long.json"}], context_length=32
        )

    (problem,) = raised.value.problems
    assert problem.startswith(f"{tmp_path}/long.json: row 2: the first 32 of its ")


def test_pairs_stay_pairs(tiny_model: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Ping {n}?", "chosen": f"Pong {n}.", "rejected": f"No {n}."} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))

    found = prepared(
        tiny_model,
        [{"path": f"{tmp_path}/pairs.jsonl", "weight": 2}],
        task="preference_tuning",
        valid_fraction=0.3,
    )

    assert found.validation is not None
    assert len(found.train) == 2 * (20 - len(found.validation))
    for rows in (found.train, found.validation):
        documents, indices = rows.laid_out(range(len(rows)))
        lines = documents.lines[indices]
        assert lines[::2].tolist() == lines[1::2].tolist()


def test_tokens_of_several_files_are_kept_and_found_again(
    tiny_model: Path, a: str, b: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(
        tiny_model, LORA, train_path=[{"path": a, "weight": 0.5}, {"path": b}], valid_path=b,
        task="instruction_tuning",
    )  # fmt: skip
    run = RunDirectory.open(str(tmp_path / "run"))
    tokens = TokensToKeep()
    first = prepare(spec, tokens.tokenize)
    run.claim("kind: FineTuneJob", "a test")
    tokens.keep(run)
    from finetune_trainer.plan.tokenization import Tokenization

    monkeypatch.setattr(Tokenization, "tokenize", lambda _: pytest.fail("rows are tokenized again"))
    said: list[str] = []
    again = prepare(spec, partial(tokens_of, run=run, say=said.append))

    assert again.fingerprint == first.fingerprint
    assert again.plan == first.plan
