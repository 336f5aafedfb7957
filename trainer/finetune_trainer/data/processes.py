"""Makes tokens of the parts of a file in several processes, with the same result in the same order."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from queue import SimpleQueue

from finetune_trainer.data.encoding import EncodedLines, LineEncoder
from finetune_trainer.data.rows import Lines
from finetune_trainer.limits import usable_processors

BYTES_FOR_ANOTHER = 8 * 2**20
"""How much of a file pays for the start of a process, which takes two seconds of a processor."""
MOST_PROCESSES = 8
"""Each takes about 120 MB."""


def processes_for(size: int) -> int:
    """How many processes are to tokenize a file of `size` bytes; 0 is this one alone."""
    count = min(usable_processors(), size // BYTES_FOR_ANOTHER, MOST_PROCESSES)
    return count if count > 1 else 0


def encoded(parts: Iterable[Lines], encoder: LineEncoder, processes: int) -> Generator[EncodedLines]:
    """Each part as tokens, in the order of the parts; once a line is no row, the others are only checked."""
    check_only = False
    if not processes:
        for lines in parts:
            done = encoder.encode(lines, check_only=check_only)
            check_only = check_only or bool(done.unreadable)
            yield done
        return
    with closing(EncodingProcesses(encoder, processes)) as group:
        waiting: deque[Future[EncodedLines]] = deque()
        for lines in parts:
            # While they start, it is done here.
            if not (waiting or group.begun.is_set()):
                done = group.encode_here(lines, check_only)
            else:
                waiting.append(group.encode(lines, check_only))
                if len(waiting) <= 2 * processes:
                    continue
                done = waiting.popleft().result()
            check_only = check_only or bool(done.unreadable)
            yield done
        while waiting:
            yield waiting.popleft().result()


class EncodingProcesses:
    """Processes that have been started; where one fails, this process does its work."""

    def __init__(self, encoder: LineEncoder, count: int) -> None:
        self.begun = threading.Event()
        """Set as soon as one of them can encode."""
        self._encoder = encoder
        self._alone = threading.Lock()
        self._idle: SimpleQueue[EncodingProcess] = SimpleQueue()
        self.processes = [EncodingProcess() for _ in range(count)]
        self._threads = ThreadPoolExecutor(count)
        for process in self.processes:
            self._threads.submit(self._begin, process)

    def encode(self, lines: Lines, check_only: bool) -> Future[EncodedLines]:
        """The tokens of some lines, once one of the processes has made them."""
        return self._threads.submit(self._encode, lines, check_only)

    def encode_here(self, lines: Lines, check_only: bool) -> EncodedLines:
        """The same by this process. A tokenizer serves one thread at a time."""
        with self._alone:
            return self._encoder.encode(lines, check_only=check_only)

    def close(self) -> None:
        """Ends all of them."""
        for process in self.processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.free()

    def _begin(self, process: EncodingProcess) -> None:
        if process.ask(self._encoder) is not _FAILED:
            self.begun.set()
        self._idle.put(process)

    def _encode(self, lines: Lines, check_only: bool) -> EncodedLines:
        process = self._idle.get()
        try:
            answer = process.ask((lines, check_only))
        finally:
            self._idle.put(process)
        return answer if isinstance(answer, EncodedLines) else self.encode_here(lines, check_only)


_FAILED = object()


class EncodingProcess:
    """See `encoding_process`."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.has_failed = False
        self._process = subprocess.Popen(
            # -P: nothing in the working directory is taken for a module.
            [sys.executable, "-P", "-m", "finetune_trainer.data.encoding_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what fails there is done, and fails, here
            env=environment,
            process_group=0,  # Ctrl-C is for the one that started it
        )

    def ask(self, question: object) -> object:
        """What it answers; _FAILED when it cannot, now and from then on."""
        questions, answers = self._process.stdin, self._process.stdout
        if self.has_failed or questions is None or answers is None:
            return _FAILED
        try:
            pickle.dump(question, questions, protocol=pickle.HIGHEST_PROTOCOL)
            questions.flush()
            return pickle.load(answers)
        except Exception:  # noqa: BLE001 - what cannot be pickled raises whatever it likes
            self.has_failed = True
            return _FAILED

    @property
    def pid(self) -> int:
        """The system's number of the process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether there is no such process any more."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Ends it; whoever waits for an answer gets none."""
        self._process.kill()
        self._process.wait()

    def free(self) -> None:
        """Frees what this process has of it, once it is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
