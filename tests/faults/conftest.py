"""Runs the tests of this package that are coroutines in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.faults.virtual import VirtualLoop
from tests.session.support import clean_environment


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Each test has a loop of its own, whose clock jumps."""
    return {"virtual": VirtualLoop}


@pytest.fixture
async def virtual_loop() -> VirtualLoop:
    """The test's loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


@pytest.fixture
def nothing_left(virtual_loop: VirtualLoop) -> Iterator[None]:
    """No task may be left when the test ends, and no exception that nobody heard of."""
    yield
    virtual_loop.assert_clean()


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        yield
