"""A process that makes tokens of lines for another one: `python -m finetune_trainer.data.encoding_process`.

It reads a pickled `LineEncoder` from its standard input and answers None. Then it answers each pickled pair
of `Lines` and `check_only` with `EncodedLines`, until there is no more input. It does not import torch.
"""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    """Answers until the other process has nothing more to say, or is gone."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
        questions = sys.stdin.buffer
        encoder = pickle.load(questions)
        answer = None
        while True:
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
            try:
                lines, check_only = pickle.load(questions)
            except EOFError:
                return
            answer = encoder.encode(lines, check_only=check_only)


if __name__ == "__main__":
    main()
