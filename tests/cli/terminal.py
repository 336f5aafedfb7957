"""A command on a terminal of its own, as a person has one: it can be read, and Ctrl-C can be typed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cli.command_line import FINETUNE

CTRL_C = b"\x03"

ON_THIS_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes standard input the terminal that signals come from, and becomes the command.

Tests that a shell runs in the background would hand on that Ctrl-C is ignored.
"""


CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def screen(seen: str) -> list[str]:
    """The lines that a terminal shows after it was sent `seen`: what was written over or erased is gone.

    Knows what Rich sends.
    """
    lines, row, column = [""], 0, 0
    for token in re.findall(rf"{CONTROL_SEQUENCE.pattern}|[\r\n]|[^\x1b\r\n]+", seen):
        if token == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif token == "\r":
            column = 0
        elif token == "\x1b[1A":
            row -= 1
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines]


class Terminal:
    """Runs `finetune ...` inside the `with` block; `seen` is all its output, control sequences included."""

    def __init__(self, *arguments: str | Path, cwd: Path, columns: int) -> None:
        self._terminal, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_THIS_TERMINAL, FINETUNE, *arguments],
            cwd=cwd,
            env={**environment, "TERM": "xterm-256color"},
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
        )
        os.close(side)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def read_until(self, pattern: str, seconds: float = 240) -> None:
        """Reads until `pattern` was written. Raises AssertionError when it is not, to the end or in time."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, f"{pattern} is not in time in {self.seen!r}"
            assert self._read(deadline), f"{pattern} is not in {self.seen!r}"

    def press(self, key: bytes) -> None:
        """Types a key."""
        os.write(self._terminal, key)

    def press_until(self, key: bytes, pattern: str) -> None:
        """Types a key, and again while nothing comes of it.

        A signal that comes between the prompt of Python's input() and its reading is seen at the next key
        only.
        """
        for _ in range(20):
            self.press(key)
            with suppress(AssertionError):
                return self.read_until(pattern, seconds=3)
        raise AssertionError(f"{pattern} is not in {self.seen!r}")

    def exit_code(self, seconds: float = 240) -> int:
        """Reads to the end, and waits for it. Raises AssertionError when it is not in time."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            assert time.monotonic() < deadline, f"it has not ended: {self.seen!r}"
        return self._process.wait(timeout=60)

    def _read(self, deadline: float) -> bool:
        """Reads what there is, at the deadline nothing; False where there will be nothing more."""
        if not select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return True
        try:
            self.seen += os.read(self._terminal, 65536).decode(errors="replace")
        except OSError:  # so Linux says that nobody has the terminal's other side open any more
            return False
        return True
