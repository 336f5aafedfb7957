from __future__ import annotations

from hypothesis import settings

# A machine that is busy with other tests is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
