from __future__ import annotations

from pathlib import Path

import pytest
from tests.trainer.export.serving import adapter_in, job_in, model_in, refused
from tests.trainer.export.test_served import FORMAT, some_model

from finetune_api.failure import FineTuneError
from finetune_trainer.export.kserve import inference_service
from finetune_trainer.export.served import served


def test_kserves_own_schema_takes_an_adapter_and_a_whole_model(
    tmp_path: Path, kserve_inference_service: Path
) -> None:
    adapter = adapter_in(tmp_path / "run/epoch-1")
    job_in(tmp_path / "run", dtype="bf16", context_length=2048, generation_config=FORMAT)
    merged = model_in(tmp_path / "merged")

    for manifest in (
        inference_service(served(str(adapter), at="pvc://runs/default/my-job/epoch-1")),
        inference_service(served(str(merged), at="s3://bucket/merged?region=eu-central-1")),
    ):
        assert refused(kserve_inference_service, manifest) == []


def test_its_schema_refuses_what_is_wrong(kserve_inference_service: Path) -> None:
    manifest = inference_service(some_model(path="s3://b/m"))
    manifest["spec"] = {"predictor": {"model": {"modelFormat": {}, "storageURI": "s3://b/m"}}}

    assert set(refused(kserve_inference_service, manifest)) == {
        ".spec.predictor.model.modelFormat.name: is required",
        ".spec.predictor.model.storageURI: is unknown",
    }


def test_an_adapter_is_brought_by_kserve_and_its_base_by_vllm(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "run/epoch-1")
    job_in(tmp_path / "run", dtype="bf16", context_length=2048, generation_config=FORMAT)

    manifest = inference_service(served(str(adapter), at="pvc://runs/default/my-job/epoch-1"))

    assert manifest["metadata"] == {"name": "my-job"}
    [(role, predictor)] = manifest["spec"].items()  # type: ignore[union-attr]
    model = predictor["model"]  # type: ignore[index, call-overload]
    assert (role, model["storageUri"]) == ("predictor", "pvc://runs/default/my-job/epoch-1")  # type: ignore[index, call-overload]
    assert model["args"] == [  # type: ignore[index, call-overload]
        "--model_name=my-job-base",
        "--model_id=org/base",
        "--enable-lora",
        "--lora-modules=my-job=/mnt/models",
        "--max-lora-rank=8",
        "--generation-config=/mnt/models",
        "--chat-template=/mnt/models/chat_template.jinja",
        "--dtype=bfloat16",
        "--max-model-len=2048",
    ]


def test_an_adapter_of_a_base_that_is_on_no_hub_is_to_be_merged(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "a", base_model_name_or_path="/models/base")

    with pytest.raises(FineTuneError, match=r"its base model /models/base is on no hub.*finetune merge"):
        inference_service(served(str(adapter), at="hf://org/tuned"))


def test_what_is_on_this_machine_is_to_be_uploaded(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match="is on this machine, where no cluster sees it; upload it"):
        inference_service(served(str(model_in(tmp_path / "merged"))))
