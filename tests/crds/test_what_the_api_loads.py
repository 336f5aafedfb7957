"""The operator's image has the API and none of what trains."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import finetune_api

SCRIPT = """
import importlib, pkgutil, sys
before = set(sys.modules)
import finetune_api
for module in pkgutil.iter_modules(finetune_api.__path__, "finetune_api."):
    importlib.import_module(module.name)
    print("module", module.name)
for name in set(sys.modules) - before:
    if "site-packages" in (getattr(sys.modules[name], "__file__", None) or ""):
        print("package", name.partition(".")[0])
"""
NEEDED = {
    "pydantic",
    "pydantic_core",
    "yaml",
    "_yaml",
    "annotated_types",
    "typing_extensions",
    "typing_inspection",
}
"""pydantic and PyYAML, and what pydantic needs."""


def test_importing_all_of_the_api_loads_pydantic_and_yaml_and_nothing_else() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = [line.split() for line in run.stdout.splitlines()]

    assert {name for kind, name in loaded if kind == "module"} == {
        f"finetune_api.{module.name}" for module in pkgutil.iter_modules(finetune_api.__path__)
    }
    assert {name for kind, name in loaded if kind == "package"} <= NEEDED
