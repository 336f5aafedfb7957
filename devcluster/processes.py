"""Programs that run in the background, each with a log and a file that says which process it is."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from devcluster.failure import ClusterError
from devcluster.waiting import wait_for

LAST_LINES = 12


@dataclass(frozen=True)
class Program:
    """A program to run, by the name that its log and its process file have."""

    name: str
    command: Sequence[str | Path]


@dataclass(frozen=True)
class Processes:
    """The processes of one cluster, in a directory of its own: `NAME.pid` and `NAME.log` for each."""

    directory: Path
    entering: tuple[str, ...] = ()
    """A command that runs the rest of its arguments elsewhere, in a child of its own."""
    outlive_this: bool = False
    """Whether they go on when the process that started them ends."""

    def start(self, program: Program) -> None:
        """Starts the program in the background. Raises ClusterError when it does not start."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._log(program.name).open("ab") as log:
            try:
                launched = subprocess.Popen(
                    [*self.entering, *([] if self.outlive_this else _ending_with_parent()), *program.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    start_new_session=True,
                )
            except OSError as error:
                raise ClusterError(f"{program.name} does not start: {error}") from error
        process = psutil.Process(launched.pid)
        if self.entering:
            process = wait_for(
                f"{program.name} to start",
                lambda: _first_child(launched),
                seconds=10,
                seen=lambda: self.log(program.name),
            )
        self._pid(program.name).write_text(f"{process.pid} {process.create_time()}\n")

    def stop(self, name: str, seconds: float = 5) -> None:
        """Asks the program to end, and kills it after so many seconds; does nothing when it does not run."""
        process = self.process(name)
        if process is not None:
            process.terminate()
            try:
                process.wait(seconds)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(seconds)
        self._pid(name).unlink(missing_ok=True)

    def kill(self, name: str) -> None:
        """Ends the program without asking it."""
        process = self.process(name)
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait(10)

    def stop_all(self) -> None:
        """Ends all programs, those first that were started last."""
        files = sorted(self.directory.glob("*.pid"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for file in files:
            self.stop(file.stem)

    def process(self, name: str) -> psutil.Process | None:
        """The program's process while it runs; never another one that has got its number since."""
        try:
            pid, created = self._pid(name).read_text().split()
            process = psutil.Process(int(pid))
            running = process.create_time() == float(created) and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if running else None

    def check(self, name: str) -> None:
        """Raises ClusterError with the last lines of its log when the program does not run."""
        if self.process(name) is None:
            raise ClusterError(f"{name} has ended\n{self.log(name)}")

    def log(self, name: str, lines: int = LAST_LINES) -> str:
        """The last lines of the program's log."""
        try:
            text = self._log(name).read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(f"  {name}: {line[:400]}" for line in text.splitlines()[-lines:])

    def _pid(self, name: str) -> Path:
        return self.directory / f"{name}.pid"

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"


def _first_child(launched: subprocess.Popen[bytes]) -> psutil.Process | None:
    try:
        children = psutil.Process(launched.pid).children()
    except psutil.NoSuchProcess:
        return None
    return children[0] if children else None


def _ending_with_parent() -> list[str]:
    """Before a command: a killed test run leaves nothing behind, where the system can do that."""
    return ["setpriv", "--pdeathsig=KILL", "--"] if shutil.which("setpriv") else []
