"""Settings of every test. The machine may be busy: no property test has a deadline, no failure depends on the clock."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("mmsr1", deadline=None)
settings.load_profile("mmsr1")
