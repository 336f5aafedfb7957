"""Silences what the libraries print for developers; their errors are still shown."""

from __future__ import annotations

import os
import sys
import warnings

QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""The libraries' own switches, which reach Ray's workers too."""


def quieten_libraries() -> None:
    """Sets the switches; must run before the libraries are imported. What a user has set stays."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name, value in QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
