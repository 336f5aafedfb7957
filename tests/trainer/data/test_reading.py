"""Files become tokens part by part, and every row that is wrong is told at once."""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
from tests.trainer.tokenizers_for_tests import byte_level
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.generation import GenerationConfig, PromptFormat
from finetune_trainer.data.chat import chat_format
from finetune_trainer.data.encoding import ConversationEncoder, LineEncoder
from finetune_trainer.data.reading import read_tokens
from finetune_trainer.data.token_files import RowsOnDisk
from finetune_trainer.data.tokens import RowsInMemory, TokenizedRows, rows_also_in, truncate

STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user must begin') }}{% endif %}"


def row(*contents: str, first: str = "user") -> str:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    turns = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return json.dumps({"messages": turns}) + "\n"


GREETING = row("Welcome!", "Ping?", first="assistant")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is a part of its own."""
    monkeypatch.setattr("finetune_trainer.data.rows.BLOCK_BYTES", 1)


def encoder(refusing: str = "") -> LineEncoder:
    tokenizer = byte_level()
    tokenizer.chat_template = refusing + str(tokenizer.chat_template)
    return ConversationEncoder("causal_lm", chat_format(tokenizer, None, "causal_lm", "org/model"))


def problems_of(file: Path, reading: LineEncoder) -> list[str]:
    with pytest.raises(FineTuneError) as raised:
        read_tokens(str(file), reading, RowsInMemory())
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    return [problem.removeprefix(f"{file}:")[:11] for problem in raised.value.problems]


@pytest.mark.usefixtures("small_parts")
def test_rows_of_many_parts_are_those_of_one_on_disk_and_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(row("Ping?", f"Pong {'x' * number}.") for number in range(9)))

    in_memory, content = read_tokens(str(file), encoder(), RowsInMemory())
    (tmp_path / "tokens").mkdir()
    on_disk, _ = read_tokens(str(file), encoder(), RowsOnDisk(tmp_path / "tokens"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.data.rows.BLOCK_BYTES", 2**18)
        at_once, _ = read_tokens(str(file), encoder(), RowsInMemory())

    assert content == hashlib.sha256(file.read_bytes()).hexdigest()
    assert arrays(in_memory.rows) == arrays(on_disk.rows) == arrays(at_once.rows)
    assert in_memory.remarks == on_disk.remarks == at_once.remarks
    assert in_memory.rows.lines.tolist() == list(range(1, 18, 2))


def arrays(rows: TokenizedRows) -> list[tuple[str, list[int]]]:
    return [
        (array.dtype.str, array.tolist())
        for array in (rows.input_ids, rows.trained, rows.offsets, rows.lines)
    ]


@pytest.mark.usefixtures("small_parts")
def test_every_row_that_cannot_be_written_is_told_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(GREETING + row("Ping?", "Pong.") + GREETING)

    assert problems_of(file, encoder(STRICT)) == ["1: messages", "3: messages"]


@pytest.mark.usefixtures("small_parts")
def test_where_lines_are_no_rows_these_are_told_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(GREETING + "{\n" + GREETING + "[]\n")

    assert problems_of(file, encoder(STRICT)) == ["2: is not J", "4: must be "]


# Bounded memory

FILE_BYTES, TOKENS = 50_000_000, 20_000_000
ALLOWED_BYTES = 48_000_000
"""What a process may take for a file, besides what it took before: less than the file, or its tokens."""


def words() -> LineEncoder:
    """An encoder that costs little time: each of few long words is a token."""
    backend = Tokenizer(models.WordLevel({"?": 0, "a": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = PromptFormat(system="{instruction}", user="{instruction} ", assistant="{instruction}")
    return ConversationEncoder(
        "causal_lm",
        chat_format(
            PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?"),  # type: ignore[no-untyped-call]
            GenerationConfig(prompt_format=plain),
            "causal_lm",
            "org/model",
        ),
    )


def many_tokens(directory: Path) -> TokenizedRows:
    """TOKENS tokens in rows of 1,000, which all differ, made part by part."""
    directory.mkdir()
    writer = RowsOnDisk(directory)
    rows = 1000
    for part in range(TOKENS // 1000 // rows):
        ids = np.ones((rows, 1000), dtype=np.int32)
        ids[:, 0] = np.arange(rows) + part * rows
        writer.append(
            TokenizedRows(
                input_ids=ids.ravel(),
                trained=np.ones(ids.size, dtype=np.bool_),
                offsets=np.arange(rows + 1) * 1000,
                lines=np.arange(rows) + part * rows + 1,
            )
        )
    return writer.finish()


def read_all(directory: Path) -> None:
    """Reads a file, cuts rows and compares them, in little memory; in a process that has no torch."""
    reading = words()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken again
    (taken,) = (
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (taken + ALLOWED_BYTES, resource.RLIM_INFINITY))
    with pytest.raises(MemoryError):
        bytes(ALLOWED_BYTES + 2**20)

    (directory / "read").mkdir()
    read, _ = read_tokens(str(directory / "rows.jsonl"), reading, RowsOnDisk(directory / "read"))
    assert len(read.rows) == FILE_BYTES // 10_000

    tokens = many_tokens(directory / "many")
    (directory / "cut").mkdir()
    cut, longer = truncate(tokens, 990, "rows.jsonl:{}".format, RowsOnDisk(directory / "cut"))
    assert longer == len(cut) == TOKENS // 1000
    assert cut.predicted.sum() == 989 * len(cut)
    assert rows_also_in(cut, cut) == len(cut)


def test_neither_a_file_nor_its_tokens_are_ever_in_memory_as_a_whole(tmp_path: Path) -> None:
    line = row("a", "x" * (10_000 - len(row("a", ""))))
    with (tmp_path / "rows.jsonl").open("w") as file:
        for _ in range(FILE_BYTES // len(line)):
            file.write(line)

    process = multiprocessing.get_context("spawn").Process(target=read_all, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
