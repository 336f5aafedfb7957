"""Files that other programs wrote give the same rows, whatever their format."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tests.trainer.tokenizers_for_tests import byte_level

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.chat import chat_format
from finetune_trainer.data.encoding import ConversationEncoder
from finetune_trainer.data.reading import read_rows, read_tokens
from finetune_trainer.data.rows import Row
from finetune_trainer.data.tokens import RowsInMemory, TokenizedRows
from finetune_trainer.storage.inputs import digest

ROWS: list[dict[str, object]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": 'Is "1,5" a number?\nAnd "é" a letter?'},
            {"role": "assistant", "content": "Yes, both.\r\n"},
        ]
    },
]
for number in range(20):
    question = {"role": "user", "content": f"Ping {number}?"}
    ROWS.append({"messages": [question, {"role": "assistant", "content": f"Pong {number}."}]})
FLAT: list[dict[str, object]] = [
    {"instruction": 'Say "1,5".\nTwice', "input": "é", "output": "1,5 1,5"},
]
FLAT += [{"instruction": f"Ping {n}?", "input": "", "output": f"Pong {n}."} for n in range(20)]


def lines(rows: Sequence[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def zstandard(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content))


def _lines(file: Path, rows: Sequence[dict[str, object]]) -> None:
    file.write_text(lines(rows))


def _datasets_json(file: Path, rows: Sequence[dict[str, object]]) -> None:
    datasets.Dataset.from_list([*rows]).to_json(file)


def _datasets_parquet(file: Path, rows: Sequence[dict[str, object]]) -> None:
    datasets.Dataset.from_list([*rows]).to_parquet(file)


def _datasets_csv(file: Path, rows: Sequence[dict[str, object]]) -> None:
    datasets.Dataset.from_list([*rows]).to_csv(file)


def _pandas_parquet(file: Path, rows: Sequence[dict[str, object]]) -> None:
    pd.DataFrame(rows).to_parquet(file)


def _pandas_csv(file: Path, rows: Sequence[dict[str, object]]) -> None:
    pd.DataFrame(rows).to_csv(file, index=False)


def _pandas_array(file: Path, rows: Sequence[dict[str, object]]) -> None:
    pd.DataFrame(rows).to_json(file, orient="records", indent=2)


def _array(file: Path, rows: Sequence[dict[str, object]]) -> None:
    file.write_text("\ufeff\n " + json.dumps(rows))


def _gzip(file: Path, rows: Sequence[dict[str, object]]) -> None:
    half = len(rows) // 2
    file.write_bytes(b"".join(gzip.compress(lines(part).encode()) for part in (rows[:half], rows[half:])))


def _zstd(file: Path, rows: Sequence[dict[str, object]]) -> None:
    file.write_bytes(zstandard(lines(rows[:7]).encode()) + zstandard(lines(rows[7:]).encode()))


def _pandas_csv_gzip(file: Path, rows: Sequence[dict[str, object]]) -> None:
    pd.DataFrame(rows).to_csv(file, index=False, compression="gzip")


Write = Callable[[Path, Sequence[dict[str, object]]], None]
NESTED: dict[str, tuple[str, Write]] = {
    "lines": ("rows.jsonl", _lines),
    "lines-of-datasets": ("rows.json", _datasets_json),
    "an-array": ("rows.json", _array),
    "an-array-of-pandas": ("rows.json", _pandas_array),
    "parquet-of-datasets": ("rows.parquet", _datasets_parquet),
    "parquet-of-pandas-without-a-name": ("rows", _pandas_parquet),
    "gzip-in-two-members": ("rows.jsonl.gz", _gzip),
    "gzip-without-a-name": ("rows", _gzip),
    "zstd-in-two-frames": ("rows.jsonl.zst", _zstd),
}
TABLES: dict[str, tuple[str, Write]] = {
    **NESTED,
    "csv-of-datasets": ("rows.csv", _datasets_csv),
    "csv-of-pandas": ("rows.csv", _pandas_csv),
    "csv-in-gzip": ("rows.csv.gz", _pandas_csv_gzip),
}


def tokens_of(path: Path | str) -> tuple[TokenizedRows, str, list[str]]:
    chat = chat_format(byte_level(), None, "instruction_tuning", "org/model")
    tokens, content = read_tokens(str(path), ConversationEncoder("instruction_tuning", chat), RowsInMemory())
    return tokens.rows, content, tokens.remarks.words("rows", "nobody")


def written(directory: Path, form: tuple[str, Write], rows: Sequence[dict[str, object]]) -> Path:
    name, write = form
    file = directory / name
    write(file, rows)
    return file


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of few rows, and of few characters of an array."""
    monkeypatch.setattr("finetune_trainer.data.rows.BLOCK_BYTES", 300)
    monkeypatch.setattr("finetune_trainer.data.files.PARQUET_ROWS", 3)
    monkeypatch.setattr("finetune_trainer.data.files._CHUNK", 7)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("form", NESTED.values(), ids=NESTED)
def test_conversations_are_the_same_tokens_whatever_the_format(
    tmp_path: Path, form: tuple[str, Write]
) -> None:
    expected, _, _ = tokens_of(written(tmp_path, ("expected.jsonl", _lines), ROWS))

    file = written(tmp_path, form, ROWS)
    rows, content, remarks = tokens_of(file)

    assert rows.fingerprint == expected.fingerprint
    assert content == hashlib.sha256(file.read_bytes()).hexdigest() == digest(str(file))
    assert remarks == []
    assert rows.lines.tolist() == list(range(1, len(ROWS) + 1))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("form", TABLES.values(), ids=TABLES)
def test_rows_of_a_table_are_the_same_tokens_whatever_the_format(
    tmp_path: Path, form: tuple[str, Write]
) -> None:
    expected, _, _ = tokens_of(written(tmp_path, ("expected.jsonl", _lines), FLAT))

    file = written(tmp_path, form, FLAT)
    rows, content, remarks = tokens_of(file)

    assert rows.fingerprint == expected.fingerprint
    assert content == hashlib.sha256(file.read_bytes()).hexdigest()
    assert remarks == ["rows: 21 rows are of Alpaca's form (instruction, input, output)"]


def test_a_table_holds_conversations_as_json(tmp_path: Path) -> None:
    expected, _, _ = tokens_of(written(tmp_path, ("expected.jsonl", _lines), ROWS))
    table = pd.DataFrame({"messages": [json.dumps(row["messages"]) for row in ROWS]})
    table.to_csv(tmp_path / "rows.csv", index=False)

    assert tokens_of(tmp_path / "rows.csv")[0].fingerprint == expected.fingerprint


def test_what_a_parquet_row_does_not_have_is_not_there(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                      {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")

    (row,) = read_rows(str(tmp_path / "rows.parquet"), "instruction_tuning")

    assert [message.trained for message in row.messages] == [True, False, True, True]


# JSON arrays


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(_TEXTS, min_size=1, max_size=3), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([None, 0, 3]),
    st.integers(1, 60),
)
def test_every_array_is_read_as_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    contents: list[list[str]],
    ascii_only: bool,
    indent: int | None,
    chunk: int,
) -> None:
    rows = [{"messages": [{"role": "user", "content": each} for each in turns]} for turns in contents]
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(rows, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.data.files._CHUNK", chunk)
        found = read_rows(str(file), "causal_lm")

    assert [[message.content for message in row.messages] for row in found] == contents
    assert [row.line for row in found] == list(range(1, len(rows) + 1))


# Directories


def test_the_files_of_a_directory_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    expected, _, _ = tokens_of(
        written(tmp_path, ("expected.jsonl", _lines), [*FLAT[:4], *FLAT[4:9], *FLAT[9:]])
    )
    directory = tmp_path / "rows"
    directory.mkdir()
    _pandas_csv(directory / "b.csv", FLAT[4:9])
    _lines(directory / "c.jsonl", FLAT[9:])
    _datasets_parquet(directory / "a.parquet", FLAT[:4])
    (directory / "README.md").write_text("# No rows")
    (directory / ".hidden.jsonl").write_text("no rows")
    (directory / "_metadata.json").write_text("no rows")

    rows, content, _ = tokens_of(directory)
    by_pattern, of_pattern, _ = tokens_of(f"{directory}/[ab]*")

    assert rows.fingerprint == expected.fingerprint
    assert content == digest(str(directory))
    assert len(by_pattern) == 9
    assert of_pattern == digest(f"{directory}/[ab]*") != content


def test_a_digest_of_several_files_is_of_their_names_and_contents(tmp_path: Path) -> None:
    directory = tmp_path / "rows"
    directory.mkdir()
    _lines(directory / "a.jsonl", ROWS[:3])
    _lines(directory / "b.jsonl", ROWS[3:])
    before = digest(str(directory))
    copied = tmp_path / "copied"
    directory.rename(copied)
    assert digest(str(copied)) == before
    (copied / "b.jsonl").rename(copied / "c.jsonl")
    assert digest(str(copied)) != before
    (copied / "c.jsonl").rename(copied / "b.jsonl")
    _lines(copied / "b.jsonl", ROWS[4:])
    assert digest(str(copied)) != before


def test_a_bad_row_is_told_with_its_file_and_place(tmp_path: Path) -> None:
    _lines(tmp_path / "a.jsonl", FLAT[:3])
    _pandas_csv(tmp_path / "b.csv", [*FLAT[:2], {"instruction": "Ping?", "input": "", "output": " "}])
    (tmp_path / "c.jsonl").write_text(lines(FLAT[:1]) + '{"instruction": "Ping?"}\n')

    assert problems_of(tmp_path) == [
        f"{tmp_path}/b.csv: row 3: output: is empty; give it a text or leave the row out",
        (
            f"{tmp_path}/c.jsonl:2: messages: is missing; the row has instruction, and known besides are"
            " conversations, instruction and output, prompt and completion or text; where yours have other"
            " names, give them in spec.data_columns"
        ),
    ]


def test_a_remark_on_several_files_names_the_file(tmp_path: Path) -> None:
    _lines(tmp_path / "a.jsonl", FLAT[:3])
    _lines(tmp_path / "b.jsonl", [FLAT[0], {**FLAT[1], "id": 7}])
    chat = chat_format(byte_level(), None, "instruction_tuning", "org/model")
    from finetune_trainer.data.places import Places
    from finetune_trainer.storage.inputs import inputs_at

    tokens, _ = read_tokens(str(tmp_path), ConversationEncoder("instruction_tuning", chat), RowsInMemory())
    words = tokens.remarks.words("rows", "nobody", Places(inputs_at(str(tmp_path))).briefly)

    assert words[1] == f"rows: id is ignored; 1 rows have it, the first in {tmp_path}/b.jsonl:2"


# What cannot be read


def problems_of(path: Path | str) -> list[str]:
    with pytest.raises(FineTuneError) as raised:
        tokens_of(path)
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    return list(raised.value.problems)


GOOD = '{"instruction": "a", "output": "b"}'
BAD: dict[str, tuple[str, bytes, str]] = {
    "xlsx": ("rows.xlsx", b"PK\x03\x04....", ": is an Excel workbook or a ZIP archive; save its rows as CSV"),
    "arrow": ("rows.arrow", b"ARROW1\0\0", ": is a file of Arrow's; save its rows as Parquet or JSON lines"),
    "bzip2": ("rows.jsonl.bz2", b"BZh9....", ": is compressed with bzip2; use gzip or zstd"),
    "no-parquet": ("rows.parquet", GOOD.encode(), ": is not Parquet, or is damaged ("),
    "half-of-parquet": ("rows.parquet", b"PAR1" + bytes(99), ": is not Parquet, or is damaged ("),
    "half-of-gzip": ("rows.jsonl.gz", gzip.compress(GOOD.encode())[:-9], ": its gzip is cut off or damaged"),
    "broken-zstd": ("rows.jsonl.zst", zstandard(GOOD.encode() * 99)[:-9], ": its zstd is cut off or damaged"),
    "parquet-in-gzip": ("rows.parquet.gz", gzip.compress(b"PAR1"), ": is Parquet inside another compression"),
    "array-cut-off": ("rows.json", f"[{GOOD}, {GOOD}".encode(), ": row 3: the array is cut off"),
    "array-of-half-a-row": ("rows.json", f"[{GOOD}, {GOOD[:9]}".encode(), ": row 2: is not JSON: "),
    "array-without-comma": ("rows.json", f"[{GOOD} {GOOD}]".encode(), ": row 2: is not JSON: a comma is"),
    "array-and-more": ("rows.json", f"[{GOOD}] {GOOD}".encode(), ": goes on after the end of the array"),
    "array-not-utf-8": ("rows.json", f'[{GOOD}, "\xe9"]'.encode("latin-1"), ": row "),
    "array-of-numbers": ("rows.json", b"[1, 2]", ": row 1: must be an object"),
    "array-of-nothing": ("rows.json", b"[ ]", ": holds no rows"),
    "csv-of-nothing": ("rows.csv", b"instruction,output\n", ": holds no rows"),
    "csv-with-a-field-too-many": ("rows.csv", b"instruction,output\na,b\na,b,c\n", ": row 2: has 3 fields"),
    "csv-with-semicolons": ("rows.csv", b"instruction;output\na;b\n", ": its first line is one column"),
    "csv-with-a-name-twice": ("rows.csv", b"output,output\na,b\n", ": its first line names output twice"),
    "csv-of-an-open-quote": ("rows.csv", b'instruction,output\na,b\na,"b\n', ": row 2: is not CSV: "),
    "csv-not-utf-8": ("rows.csv", "instruction,output\né,b\n".encode("latin-1"), ": row 1: is not UTF-8"),
    "csv-of-python": ("rows.csv", b"messages\n\"[{'role': 'user'}]\"\n", ": row 1: messages: is a text"),
    "csv-of-others": ("rows.csv", b"a,b\n1,2\n", ": row 1: messages: is missing; the row has a, b"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "what"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_says_what_would_be_right(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)

    problems = problems_of(file)

    assert len(problems) <= 2
    assert problems[0].startswith(f"{file}{what}")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("rows/*.jsonl", "no such file; give a pattern that files have"),
        ("", "is a directory without files of"),
    ],
)
def test_where_there_are_no_files_it_is_said(tmp_path: Path, name: str, what: str) -> None:
    assert problems_of(f"{tmp_path}/{name}")[0].startswith(f"{tmp_path}/{name}: {what}")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    _lines(tmp_path / "a[1].jsonl", ROWS)

    assert isinstance(read_rows(f"{tmp_path}/a[1].jsonl", "instruction_tuning")[0], Row)
