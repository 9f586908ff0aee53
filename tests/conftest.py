"""Settings for every test: slow machines must not fail them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices lose time to a second thread

from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser

from tests.browser import chromium
from tests.copies import FakeHub, Server, hub_target

settings.register_profile(
    "lab", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("lab")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for a file's tests."""
    with chromium() as started:
        yield started


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
