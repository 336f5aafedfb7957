"""The commands of `devcluster.main`: `python -m devcluster up`."""

from __future__ import annotations

from devcluster.main import main

main()
