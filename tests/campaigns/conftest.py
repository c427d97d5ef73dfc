"""What the campaigns share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.session.support import clean_environment


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        yield
