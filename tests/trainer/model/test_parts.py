"""Four ranks read a model in parts: together they have what one process reads, and each only its part."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist
from pydantic import JsonValue
from safetensors.torch import load_file
from tests.trainer.training_jobs import FULL, LORA, Fields, in_processes, spec_of
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.sharding import Sharding
from finetune_trainer.checkpoint.streamed import write_gathered
from finetune_trainer.model.load import load_model
from finetune_trainer.model.parts import dimension, mesh_of
from finetune_trainer.parallel.parallel import parallel_of
from finetune_trainer.tasks.language import LanguageObjective
from make_tiny_model import make_tiny_model

FSDP = Sharding(kind="fsdp")
RANKS = 4
WAYS: dict[str, Fields] = {
    "full": FULL,
    "lora": LORA,
    "lora on embeddings": {"lora_config": {"r": 4, "target_modules": ["embed_tokens", "q_proj", "lm_head"]}},
    "lora and a head in full": {"lora_config": {"r": 4, "modules_to_save": ["lm_head"]}},
}
MODELS = ["untied", "tied", "experts"]
COPIES_OF_THE_MODEL = 1.5
"""The most that all ranks together may take, in copies of the model; each has a quarter of one."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of several kinds. There are more ranks than experts can be dealt to evenly."""
    directory = tmp_path_factory.mktemp("models")
    make_tiny_model(directory / "untied")
    make_tiny_model(directory / "tied", tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        experts = MixtralConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=5,
            max_position_embeddings=64,
        )
        MixtralForCausalLM(experts).save_pretrained(directory / "experts")
        large = LlamaConfig(
            vocab_size=16_384,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        LlamaForCausalLM(large).bfloat16().save_pretrained(directory / "large")
    return directory


def read_all(models: Path, results: Path, rank: int, num_devices: int) -> None:
    """On each rank; rank 0 saves what all have together, beside what it needed to have it."""
    assert num_devices == RANKS
    mesh = mesh_of(FSDP, "cpu")
    with peak() as most:
        held = load_model(spec_of(models / "large", FULL), dtype="fp32", on_gpu=False, mesh=mesh)
        parallel = parallel_of(rank, RANKS, torch.device("cpu"), FSDP)
        placed = parallel.place(LanguageObjective(held))
    (results / f"peak of rank {rank}").write_text(str(most[0]))
    del held, parallel, placed
    for name in MODELS:
        for way, fields in WAYS.items():
            model = load_model(spec_of(models / name, fields), dtype="fp32", on_gpu=False, mesh=mesh)
            whole = {each: together(weight) for each, weight in model.state_dict().items()}
            buffers = {each: buffer.clone() for each, buffer in model.named_buffers()}
            if rank == 0:
                torch.save({"weights": whole, "buffers": buffers}, results / f"{name}: {way}")
        loaded = cast(
            "PreTrainedModel",
            load_model(spec_of(models / name, FULL), dtype="fp32", on_gpu=False, mesh=mesh),
        )
        saved = results / f"{name} saved"
        saved.mkdir(exist_ok=True)
        write_gathered(loaded, saved if rank == 0 else None, torch.float32, loaded.state_dict())


def together(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most memory in bytes that this process had of its own in the block; pages of files do not count."""
    gc.collect()
    before, most, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], anonymous_bytes() - before)
            time.sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    yield most
    done.set()
    watching.join()


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.fixture(scope="module")
def results(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results")
    assert in_processes(RANKS, partial(read_all, models, directory)) == [0] * RANKS
    return directory


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_all_parts_together_are_the_model_that_one_process_reads(
    models: Path, results: Path, name: str, way: str
) -> None:
    expected = load_model(spec_of(models / name, WAYS[way]), dtype="fp32", on_gpu=False)
    read = torch.load(results / f"{name}: {way}", weights_only=True)
    assert read["weights"].keys() == expected.state_dict().keys()
    for each, weight in expected.state_dict().items():
        assert torch.equal(read["weights"][each], weight), each
    assert read["buffers"].keys() == dict(expected.named_buffers()).keys()
    for each, buffer in expected.named_buffers():
        assert torch.equal(read["buffers"][each], buffer), each


@pytest.mark.parametrize("name", MODELS)
def test_what_is_gathered_is_written_under_the_names_of_the_files_it_was_read_from(
    models: Path, results: Path, name: str
) -> None:
    read = load_file(models / name / "model.safetensors")
    written = load_file(results / f"{name} saved" / "model.safetensors")
    assert written.keys() == read.keys()
    assert all(torch.equal(written[each], read[each]) for each in read)


def test_all_ranks_together_hold_little_more_than_one_copy(models: Path, results: Path) -> None:
    copy = 2 * (models / "large" / "model.safetensors").stat().st_size  # of bf16, and it is trained in fp32
    peaks = [int((results / f"peak of rank {rank}").read_text()) for rank in range(RANKS)]
    print(f"a copy is {copy / 2**20:.0f} MiB; {[round(each / copy, 2) for each in peaks]} of it are held")
    assert sum(peaks) < COPIES_OF_THE_MODEL * copy
    assert max(peaks) < copy / 2


@pytest.mark.parametrize(
    ("shape", "pieces", "cut"),
    [((1024, 64), 4, 0), ((3,), 4, 0), ((8, 64, 32), 4, 0), ((8, 64, 32), 16, 2), ((5, 64, 30), 4, 0)],
    ids=["a matrix", "a short vector", "an expert for each", "fewer experts", "no other way"],
)
def test_weights_are_cut_along_the_first_dimension_unless_ranks_got_no_expert(
    shape: tuple[int, ...], pieces: int, cut: int
) -> None:
    assert dimension(shape, pieces) == cut


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A group of this process alone."""
    yield mesh_of(FSDP, "cpu")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("lora", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_adapters_that_need_whole_weights_are_refused(
    tiny_model: Path, alone: DeviceMesh, lora: JsonValue, field: str
) -> None:
    spec = spec_of(tiny_model, {"lora_config": lora})
    with pytest.raises(FineTuneError, match=f"spec.lora_config.{field} needs whole weights") as raised:
        load_model(spec, dtype="fp32", on_gpu=False, mesh=alone)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
