"""Files of rows in their formats, read as lines of JSON: JSON lines, JSON arrays, CSV and Parquet.

The text ones may be compressed with gzip or zstd. A format is told by the content, and where that could be
several, by the name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import pyarrow as pa

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data import rows as row_lines
from finetune_trainer.data.rows import Lines, blocks

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Codec = Literal["gzip", "zstd"]
PARQUET_ROWS = 256
"""How many rows of Parquet are taken together."""
LONGEST_VALUE = 2**26
"""Characters of an element of an array; what is longer is taken for an array that is damaged."""
_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_BLANK = b"\xef\xbb\xbf \t\r\n"
_CODECS: dict[bytes, Codec] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files begin."""
_REFUSED = {
    b"PK\x03\x04": "is an Excel workbook or a ZIP archive; save its rows as CSV, JSON lines or Parquet",
    b"ARROW1": "is a file of Arrow's; save its rows as Parquet or JSON lines",
    b"BZh": "is compressed with bzip2; use gzip or zstd",
    b"\xfd7zXZ": "is compressed with xz; use gzip or zstd",
}


class Format(Enum):
    """What a file is."""

    LINES = "JSON lines"
    ARRAY = "a JSON array"
    CSV = "CSV"
    PARQUET = "Parquet"


class _Watched(io.RawIOBase):
    """A stream that is read from beginning to end, and what it held."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self.content = hashlib.sha256()
        self.error: OSError | FineTuneError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        try:
            chunk = self._stream.read(len(view))
        except (OSError, FineTuneError) as error:
            self.error = error
            raise
        self.content.update(chunk)
        view[: len(chunk)] = chunk
        return len(chunk)


class _Decompressed(io.RawIOBase):
    """What is compressed in a stream. Raises FineTuneError (InvalidData) where it is damaged."""

    def __init__(self, stream: io.IOBase, codec: Codec, path: str, watched: _Watched) -> None:
        super().__init__()
        self._stream = pa.CompressedInputStream(stream, codec)
        self._words = f"{path}: its {codec} is cut off or damaged"
        self._watched = watched

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        try:
            chunk = self._stream.read(len(view))
        except (OSError, pa.ArrowException) as error:
            if self._watched.error is not None:
                raise self._watched.error from error
            raise FineTuneError(
                FailureClass.INVALID_DATA, f"{self._words} ({_first_line(error)}); write the file anew"
            ) from error
        view[: len(chunk)] = chunk
        return len(chunk)


class _Window:
    """The part of a text of JSON that is looked at, which moves on."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._part = ""
        self._decoder = json.JSONDecoder()
        self.at = 0
        """What is before it has been read."""

    def sign(self) -> str:
        """The next character that is not blank, which is not read yet; empty at the end."""
        while True:
            found = _SPACE.match(self._part, self.at)
            self.at = self.at if found is None else found.end()
            if self.at < len(self._part) or not self._more(_CHUNK):
                return self._part[self.at : self.at + 1]

    def value(self) -> str:
        """The next value, as it is written. Raises ValueError or RecursionError where there is none."""
        while True:
            try:
                _, end = self._decoder.raw_decode(self._part, self.at)
            except ValueError:
                # It may go on in the part that follows: it is tried again with twice as much.
                length = len(self._part) - self.at
                if length > LONGEST_VALUE or not self._more(max(_CHUNK, length)):
                    raise
                continue
            if end == len(self._part) and self._more(_CHUNK):
                continue
            value = self._part[self.at : end]
            self.at = end
            return value

    def _more(self, size: int) -> bool:
        chunk = self._text.read(size)
        if chunk:
            self._part = self._part[self.at :] + chunk
            self.at = 0
        return bool(chunk)


class RowFile:
    """A file of rows that is open at its beginning. `path` names it in errors and, by its end, its format.

    Raises FineTuneError (InvalidData) where it is a file of another kind.
    """

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self._path = path
        self._raw = stream
        self._watched = _Watched(stream)
        self._stream = io.BufferedReader(self._watched, 2**16)
        name = path.partition("?")[0].lower()
        head = self._stream.peek(16)
        codec = next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)
        if codec is not None:
            name = name.removesuffix(".gz").removesuffix(".zst")
            inside = _Decompressed(self._stream, codec, path, self._watched)
            text = io.BufferedReader(inside, 2**16)
            head = text.peek(16)
            self._text = cast("BinaryIO", text)
        else:
            self._text = cast("BinaryIO", self._stream)
        self.format = self._format(name, head, compressed=codec is not None)

    def lines(self) -> Iterator[Lines]:
        """All rows, about BLOCK_BYTES of them at a time: an object of JSON each, with the number of its row.

        Of JSON lines that is the lines as they are, with their numbers. Raises FineTuneError (InvalidData)
        where no further row can be read.
        """
        match self.format:
            case Format.LINES:
                yield from blocks(self._text)
            case Format.ARRAY:
                yield from _together(self._elements())
            case Format.CSV:
                yield from _together(self._csv())
            case Format.PARQUET:
                self._drain()
                self._raw.seek(0)
                yield from _together(self._parquet())
                return
        self._drain()

    @property
    def sha256(self) -> str:
        """Of the file, once all its lines are read."""
        return self._watched.content.hexdigest()

    def _format(self, name: str, head: bytes, *, compressed: bool) -> Format:
        refused = next((what for magic, what in _REFUSED.items() if head.startswith(magic)), None)
        if refused is not None:
            raise self._error(refused)
        if head.startswith(b"PAR1") or name.endswith(".parquet"):
            if compressed:
                raise self._error("is Parquet inside another compression; Parquet is compressed by itself")
            return Format.PARQUET
        if name.endswith(".csv"):
            return Format.CSV
        if not name.endswith((".jsonl", ".ndjson")) and head.lstrip(_BLANK).startswith(b"["):
            return Format.ARRAY
        return Format.LINES

    def _drain(self) -> None:
        while self._stream.read(_CHUNK):
            pass

    def _error(self, what: str) -> FineTuneError:
        return FineTuneError(FailureClass.INVALID_DATA, f"{self._path}: {what}")

    def _elements(self) -> Iterator[bytes]:
        """The elements of an array, as they are written."""
        text = io.TextIOWrapper(self._text, encoding="utf-8-sig", newline="")
        window = _Window(text)
        row = 0
        try:
            window.sign()
            window.at += 1  # the bracket
            while (sign := window.sign()) != "]":
                if row:
                    if sign != ",":
                        what = "is not JSON: a comma is missing before it" if sign else "the array is cut off"
                        raise self._error(f"row {row + 1}: {what}")
                    window.at += 1
                    window.sign()
                row += 1
                yield window.value().encode("utf-8", "surrogatepass")
            window.at += 1
            if window.sign():
                raise self._error("goes on after the end of the array; a file holds one array")
        except UnicodeDecodeError as error:
            raise self._error(f"row {row + 1}: is not UTF-8; save the file as UTF-8 text") from error
        except json.JSONDecodeError as error:
            raise self._error(f"row {row}: is not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise self._error(f"row {row}: cannot be read as JSON: {error}") from error
        finally:
            text.detach()

    def _csv(self) -> Iterator[bytes]:
        """Rows as objects of texts, with the names of the first line."""
        csv.field_size_limit(2**31 - 1)
        text = io.TextIOWrapper(self._text, encoding="utf-8-sig", newline="")
        row = 0
        try:
            reader = csv.reader(text, strict=True)
            columns = next(reader, [])
            self._check_columns(columns)
            for fields in reader:
                if not fields:
                    continue
                row += 1
                if len(fields) != len(columns):
                    raise self._error(
                        f"row {row}: has {len(fields)} fields, and the first line names {len(columns)}; put"
                        ' fields with commas, quotes or line breaks into "..."'
                    )
                yield json.dumps(dict(zip(columns, fields, strict=True)), ensure_ascii=False).encode()
        except csv.Error as error:
            raise self._error(f"row {row + 1}: is not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise self._error(f"row {row + 1}: is not UTF-8; save the file as UTF-8 text") from error
        finally:
            text.detach()

    def _check_columns(self, columns: list[str]) -> None:
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise self._error(
                f"its first line names {', '.join(twice)} twice; give every column its own name"
            )
        if len(columns) == 1 and (separator := next((each for each in ";\t|" if each in columns[0]), None)):
            raise self._error(
                f"its first line is one column, {columns[0]!r:.80}; separate columns with commas, not"
                f" {separator!r}"
            )

    def _parquet(self) -> Iterator[bytes]:
        """Rows as objects, without what is null: a column has the keys of all rows, whichever one row has."""
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(self._raw, pre_buffer=False, buffer_size=_CHUNK)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield json.dumps(_without_null(row), ensure_ascii=False, default=_shown).encode(
                        "utf-8", "surrogatepass"
                    )
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._error(f"is not Parquet, or is damaged ({_first_line(error)})") from error


def _together(rows: Iterable[bytes]) -> Iterator[Lines]:
    """Rows in parts of about BLOCK_BYTES."""
    first, size, part = 1, 0, list[bytes]()
    for row in rows:
        part.append(row)
        size += len(row)
        if size >= row_lines.BLOCK_BYTES:
            yield Lines(first, part)
            first, size, part = first + len(part), 0, []
    if part:
        yield Lines(first, part)


def _without_null(value: object) -> object:
    match value:
        case dict():
            return {key: _without_null(each) for key, each in value.items() if each is not None}
        case list():
            return [_without_null(each) for each in value]
        case _:
            return value


def _shown(value: object) -> str:
    """What JSON has no form for: dates, and bytes, of which nothing is read."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
