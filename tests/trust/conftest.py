"""Let the tests here share their tables, and give hypothesis its profiles."""

import os

from hypothesis import HealthCheck, settings

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("default run", max_examples=15, derandomize=True, **QUIET)
settings.register_profile("2000 examples", max_examples=2000, **QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default run"))
