"""Names of what is made for a job: legal whatever the job is called."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from finetune_operator.names import child_name, ray_job_name

LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
JOB_NAMES = st.from_regex(rf"{LABEL}(\.{LABEL}){{0,4}}", fullmatch=True).filter(
    lambda name: len(name) <= 253
) | st.sampled_from(
    [
        "a" * 253,
        "0" * 253,
        "a-" * 126 + "a",
        "0.0",
        "8xa100.v2",
        "a" * 32 + "-" * 9 + "b",
        "1" + "-" * 60 + "1",
    ]
)
UIDS = st.uuids(version=4).map(str)
DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"


@given(JOB_NAMES, UIDS, st.integers(1, 9999))
def test_name_of_a_rayjob_is_one_that_kuberay_takes(name: str, uid: str, attempt: int) -> None:
    ray_job = ray_job_name(name, uid, attempt)
    assert len(ray_job) <= 47
    assert re.fullmatch(DNS_1035, ray_job)
    assert ray_job == f"{child_name(name, uid)}-{attempt}"


@given(JOB_NAMES, JOB_NAMES, st.uuids(version=4), st.uuids(version=4))
def test_other_job_has_other_names(name: str, other_name: str, uid: UUID, other_uid: UUID) -> None:
    assume(uid.hex[:8] != other_uid.hex[:8])
    assert child_name(name, str(uid)) != child_name(other_name, str(other_uid))


@given(JOB_NAMES, UIDS)
def test_attempts_have_names_of_their_own(name: str, uid: str) -> None:
    assert len({ray_job_name(name, uid, attempt) for attempt in range(1, 12)}) == 11


@pytest.mark.parametrize(
    ("name", "child"),
    [
        ("tune", "tune-0123abcd"),
        ("llama.3-8b", "llama-3-8b-0123abcd"),
        ("8xa100", "ftj-8xa100-0123abcd"),
        ("a-very-long-name-that-goes-on-and-on", "a-very-long-name-that-goes-on-and-0123abcd"),
    ],
    ids=["as it is", "dots", "a digit first", "cut"],
)
def test_name_can_be_recognised(name: str, child: str) -> None:
    assert child_name(name, "0123abcd-0000-4000-8000-000000000000") == child
