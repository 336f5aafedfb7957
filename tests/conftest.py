"""Inputs that many tests share: small ones made in seconds, and the real model, made once for a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from make_inputs import PAIRS_TRAIN, TRAIN, VALIDATION, make_data, make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with its own tokenizer and chat template."""
    from make_tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tied_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one matrix for embedding and output."""
    from make_tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-tied", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 chat rows of 30 to 500 tokens of the tiny model, some with several turns or a system message."""
    from make_tiny_rows import make_tiny_rows

    return make_tiny_rows(tmp_path_factory.mktemp("rows") / "tiny.jsonl", 24)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in fp32; made in the user's cache, with a download, when it is not there yet."""
    return make_model()


@pytest.fixture(scope="session")
def stdlib_train() -> Path:
    """80 chat rows about the standard library, 40 to 80 tokens of SmolLM2 each."""
    return make_data() / TRAIN


@pytest.fixture(scope="session")
def stdlib_validation() -> Path:
    """32 of the same kind, with no answer that is in `stdlib_train`."""
    return make_data() / VALIDATION


@pytest.fixture(scope="session")
def stdlib_pairs() -> Path:
    """A pair of answers for each question of `stdlib_train`: its own, and another's."""
    return make_data() / PAIRS_TRAIN
