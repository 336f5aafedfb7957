"""Tokenized rows as NumPy's files in a directory, from which every process maps them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from finetune_trainer.data.remarks import Remarks
from finetune_trainer.data.tokens import DocumentRows, FileTokens, TokenizedRows
from finetune_trainer.storage.failure import explained

Element = TypeVar("Element", bound=np.generic)

ARRAYS = {"input_ids": np.int32, "trained": np.bool_, "offsets": np.int64, "lines": np.int64}
"""The arrays of `TokenizedRows` with their types; each is in a file `NAME.npy`."""
DESCRIPTION = "tokens.json"
"""A `Description` as JSON, and below it the SHA-256 of that line."""


class _GrowingArray:
    """A file of NumPy's with an array of one dimension that grows; it is open only while it is written to."""

    def __init__(self, file: Path, dtype: type[np.generic]) -> None:
        self._file = file
        self._dtype = np.dtype(dtype)
        self._length = 0
        with file.open("xb") as stream:
            self._head(stream)

    def append(self, array: NDArray[np.generic]) -> None:
        with self._file.open("ab") as stream:
            stream.write(np.ascontiguousarray(array, dtype=self._dtype).data)
        self._length += len(array)

    def finish(self) -> None:
        with self._file.open("r+b") as stream:
            self._head(stream)

    def _head(self, stream: BinaryIO) -> None:
        # Its size does not depend on the length: NumPy leaves room for the first axis to grow.
        described = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False}
        npy.write_array_header_1_0(stream, {**described, "shape": (self._length,)})


class RowsOnDisk:
    """A `RowWriter` of any number of rows: into files of a directory that is there, empty, from then on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tokens = 0
        with explained(directory):
            self._arrays = {
                name: _GrowingArray(_file(directory, name), dtype) for name, dtype in ARRAYS.items()
            }
            self._arrays["offsets"].append(np.zeros(1, dtype=np.int64))

    def append(self, rows: TokenizedRows) -> None:
        """See `RowWriter`. Raises FineTuneError (StorageError) where it cannot be written."""
        with explained(self._directory):
            self._arrays["input_ids"].append(rows.input_ids)
            self._arrays["trained"].append(rows.trained)
            self._arrays["offsets"].append(rows.offsets[1:] + self._tokens)
            self._arrays["lines"].append(rows.lines)
        self._tokens += len(rows.input_ids)

    def finish(self) -> TokenizedRows:
        """See `RowWriter`; the rows are mapped from the files. Raises as `append`."""
        with explained(self._directory):
            for array in self._arrays.values():
                array.finish()
            return map_rows(self._directory)


def write_rows(rows: TokenizedRows, directory: Path) -> None:
    """Writes rows into a directory that is there and empty. Raises as `RowsOnDisk`."""
    writer = RowsOnDisk(directory)
    for part in rows.parts():
        writer.append(part)
    writer.finish()


def map_rows(directory: Path) -> TokenizedRows:
    """The rows in a directory; of their arrays what is looked at comes into memory, once for all processes.

    Raises OSError where a file is missing, ValueError where one is not what was written.
    """
    return TokenizedRows(
        input_ids=_mapped(directory, "input_ids", np.int32),
        trained=_mapped(directory, "trained", np.bool_),
        offsets=_mapped(directory, "offsets", np.int64),
        lines=_mapped(directory, "lines", np.int64),
        directory=directory,
    )


class _ByPath(TokenizedRows):
    """Rows that are pickled as the directory they are mapped from."""

    def __reduce__(self) -> tuple[Callable[[Path], TokenizedRows], tuple[Path]]:
        assert self.directory is not None
        return (map_rows, (self.directory,))


def by_path(rows: TokenizedRows) -> TokenizedRows:
    """The same rows for other processes of this machine: those on disk are mapped there too, not copied."""
    if isinstance(rows, DocumentRows):
        return rows.over(by_path(rows.documents))
    if rows.directory is None:
        return rows
    return _ByPath(rows.input_ids, rows.trained, rows.offsets, rows.lines, rows.directory)


class Description(BaseModel):
    """What the rows in a directory are."""

    version: Literal[1] = 1
    key: str
    """Names what decided the tokens."""
    files: dict[str, str]
    """The SHA-256 of each array's file, by the array's name."""
    remarks: Remarks


def describe(directory: Path, key: str, remarks: Remarks) -> None:
    """Writes down what the rows in a directory are. Raises FineTuneError (StorageError) where it cannot."""
    with explained(directory):
        files = {name: _sha256(_file(directory, name)) for name in ARRAYS}
        line = Description(key=key, files=files, remarks=remarks).model_dump_json()
        digest = hashlib.sha256(line.encode(errors="surrogatepass")).hexdigest()
        text = f"{line}\n{digest}\n".encode(errors="surrogatepass")
        (directory / DESCRIPTION).write_bytes(text)


def described(text: str | None, key: str) -> Description | None:
    """The description in the text of a file; None unless it is whole and of tokens with this key."""
    line, _, digest = (text or "").partition("\n")
    if digest != f"{hashlib.sha256(line.encode(errors='surrogatepass')).hexdigest()}\n":
        return None
    try:
        description = Description.model_validate_json(line)
    except ValidationError:
        return None
    return description if description.key == key else None


def described_tokens(directory: Path, description: Description) -> FileTokens:
    """The rows in a directory. Raises OSError or ValueError where they are not those of the description."""
    for name in ARRAYS:
        if _sha256(_file(directory, name)) != description.files.get(name):
            raise ValueError(f"{_file(directory, name).name} is not what was written")
    return FileTokens(map_rows(directory), description.remarks)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mapped(directory: Path, name: str, dtype: type[Element]) -> NDArray[Element]:
    # As a plain array, which is pickled as a buffer beside; one of NumPy's memmap is copied.
    array = np.asarray(np.load(_file(directory, name), mmap_mode="r", allow_pickle=False))
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{_file(directory, name).name} is not what was written")
    return array


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"
