from __future__ import annotations

import pytest

from finetune_api.deepspeed import Asked
from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.plan.sharding import choose_sharding, is_open

GIB = 2**30
NEEDED = {"ddp": 30 * GIB, "fsdp": 12 * GIB}
OFFLOADED = Sharding(kind="fsdp", cpu_offload=True)
PARTS = Sharding(kind="fsdp")


def needed(sharding: Sharding) -> int:
    return 4 * GIB if sharding.cpu_offload else NEEDED[sharding.kind]


@pytest.mark.parametrize(
    ("asked", "devices", "memory", "chosen"),
    [
        (Asked(), 8, 40 * GIB, COPIES),
        (Asked(), 8, 22 * GIB, PARTS),
        (Asked(), 8, None, COPIES),
        (Asked(), 1, 22 * GIB, COPIES),
        (Asked(kind="ddp"), 8, 22 * GIB, COPIES),
        (Asked(kind="fsdp"), 8, 40 * GIB, PARTS),
        (Asked(kind="fsdp"), 1, 22 * GIB, PARTS),
        (Asked(kind="fsdp", cpu_offload=True), 1, None, OFFLOADED),
        (Asked(kind="fsdp", cpu_offload=None), 8, 22 * GIB, PARTS),
        (Asked(kind="fsdp", cpu_offload=None), 8, 8 * GIB, OFFLOADED),
        (Asked(cpu_offload=None), 8, 8 * GIB, OFFLOADED),
        (Asked(kind="fsdp", reshard=False), 8, 40 * GIB, Sharding(kind="fsdp", reshard=False)),
    ],
    ids=[
        "copies where they fit",
        "parts where they do not",
        "copies where nothing is known of the device",
        "one device has nobody to share with",
        "ddp at its word",
        "fsdp at its word",
        "fsdp on one device",
        "offload on one device",
        "no offload where parts fit",
        "offload where they do not",
        "parts and offload where neither fits",
        "stage 2 keeps weights gathered",
    ],
)
def test_the_choice(asked: Asked, devices: int, memory: int | None, chosen: Sharding) -> None:
    assert choose_sharding(asked, devices, needed, memory) == chosen


def test_nothing_is_estimated_where_the_choice_does_not_depend_on_it() -> None:
    def never(sharding: Sharding) -> int:
        raise AssertionError(sharding)

    for asked, devices in ((Asked(kind="ddp"), 8), (Asked(kind="fsdp"), 8), (Asked(), 1)):
        assert not is_open(asked, devices)
        choose_sharding(asked, devices, never, 22 * GIB)
    assert is_open(Asked(), 8)
    assert is_open(Asked(kind="fsdp", cpu_offload=None), 8)
