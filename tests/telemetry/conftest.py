"""OpenTelemetry's SDK, in memory, and the environment of the tests of sessions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import set_tracing_disabled

from tests.session.support import clean_environment
from tests.telemetry.sdk import Sdk


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        set_tracing_disabled(True)
        yield


@pytest.fixture
def sdk() -> Iterator[Sdk]:
    found = Sdk()
    yield found
    found.shutdown()
