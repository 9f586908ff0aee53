"""Settings for every test: slow machines must not fail them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices lose time to a second thread

from hypothesis import HealthCheck, settings

from tests.copies import FakeHub, Server, hub_target

settings.register_profile(
    "lab", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("lab")


@pytest.fixture
def hub() -> FakeHub:
    """A hub without a network."""
    return FakeHub()


@pytest.fixture
def server(tmp_path: Path, hub: FakeHub) -> Iterator[Server]:
    """A store that is copied to `hub`."""
    made = Server(tmp_path / "data", hub_target(hub))
    yield made
    made.store.close()
