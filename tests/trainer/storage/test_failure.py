from __future__ import annotations

import pytest

from finetune_api.failure import FailureClass
from finetune_trainer.storage.failure import failure


@pytest.mark.parametrize(
    "said",
    [
        (
            "When reading information for key 'x' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject"
            " operation: No response body."
        ),
        (
            "AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: The AWS Access Key Id you"
            " provided does not exist in our records."
        ),
        (
            "AWS Error UNKNOWN (HTTP status 400) during PutObject operation:"
            " Unable to parse ExceptionName: ExpiredToken"
        ),
        "google::cloud::Status(PERMISSION_DENIED: Permanent error, with no storage.objects.get access",
        "google::cloud::Status(UNAUTHENTICATED: Permanent error, with a last message of Invalid Credentials",
    ],
)
def test_an_object_store_that_refuses_denies_access(said: str) -> None:
    denied = failure("s3://b/x", OSError(said))

    assert denied.failure_class == FailureClass.ACCESS_DENIED
    assert str(denied) == f"s3://b/x: {said}; check that it exists and that this process may use it"


def test_a_file_that_the_user_may_not_open_denies_access() -> None:
    denied = failure("runs", PermissionError(13, "Permission denied", "/data/runs/job.yaml"))

    assert denied.failure_class == FailureClass.ACCESS_DENIED
    assert (
        str(denied)
        == "/data/runs/job.yaml: Permission denied; check that it exists and that this process may use it"
    )


def test_a_long_reason_becomes_one_line() -> None:
    assert str(failure("runs", OSError("first line\n  second line\n"))) == "runs: first line second line"


def test_an_error_of_the_system_is_told_in_its_own_words() -> None:
    failed = failure("runs/epoch-0", OSError(28, "No space left on device"))

    assert failed.failure_class == FailureClass.STORAGE_ERROR
    assert str(failed) == "runs/epoch-0: No space left on device"
