"""An environment that the tests of sessions do not depend on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.session.support import clean_environment


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        yield
