from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked_files() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in names.split("\0") if name]


def test_no_file_names_the_directory_it_was_written_in() -> None:
    assert [path for path in tracked_files() if str(ROOT).encode() in path.read_bytes()] == []


def test_every_relative_link_of_the_documents_leads_to_a_tracked_file() -> None:
    tracked = {path.resolve() for path in tracked_files()}
    reachable = tracked | {directory for path in tracked for directory in path.parents}

    dead = [
        f"{document.relative_to(ROOT)}: {link}"
        for document in tracked
        if document.suffix == ".md"
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        if "://" not in link and (document.parent / link).resolve() not in reachable
    ]

    assert dead == []
