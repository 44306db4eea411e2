"""Settings of every test: no property test has a deadline, because no failure may depend on the clock."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("mmsr1", deadline=None)
settings.load_profile("mmsr1")
