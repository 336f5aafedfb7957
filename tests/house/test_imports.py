from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
API = ROOT / "crds/finetune_api"


def imported_packages(source: str) -> set[str]:
    """The top-level packages that a module imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module is not None]
    return {module.partition(".")[0] for module in modules}


def test_the_api_imports_only_pydantic_and_yaml() -> None:
    imported = {package for path in API.rglob("*.py") for package in imported_packages(path.read_text())}

    assert imported - sys.stdlib_module_names == {"finetune_api", "pydantic", "pydantic_core", "yaml"}


def test_the_development_cluster_needs_no_test() -> None:
    modules = sorted((ROOT / "devcluster").glob("*.py"))

    assert len(modules) > 20
    assert [path.name for path in modules if "tests" in imported_packages(path.read_text())] == []
