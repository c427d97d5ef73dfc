"""An environment that the tests of sessions do not depend on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import set_tracing_disabled

from tests.session.support import clean_environment


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        # The Runner would send its traces to the service.
        set_tracing_disabled(True)
        yield
