"""An environment that the tests of the Runner do not depend on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import set_tracing_disabled

from tests.session.support import clean_environment


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Nothing is taken from the environment, and no trace leaves the process."""
    set_tracing_disabled(True)
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        yield
