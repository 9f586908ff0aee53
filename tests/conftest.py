"""Settings for every test: slow machines must not fail them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices lose time to a second thread

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lab", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("lab")
