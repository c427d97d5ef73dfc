"""The two servers that the contract suite runs against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cached_session.emulator import Emulator
from tests.emulator.api import Api


@pytest.fixture(scope="module")
def emulator_api() -> Iterator[Api]:
    with Emulator() as emulator:
        api = Api(emulator.base_url, "emulator")
        with api.client:
            yield api


@pytest.fixture(scope="module")
def agentic_api(agentic_server: str) -> Iterator[Api]:
    api = Api(agentic_server, "agentic-api")
    with api.client:
        yield api


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Api:
    chosen: Api = request.getfixturevalue(request.param)
    return chosen
