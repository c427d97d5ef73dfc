"""The pytest plugin. pytest imports it in every project that has this package installed.

So it imports nothing but pytest until a fixture is asked for. And it has no assertion that
pytest would have to rewrite, which warns where somebody has imported it before: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from cached_session import CachedSession
    from cached_session.emulator import Emulator

_MARKER = "conversations_faults"

# For tests that ran to their end: none of their fixtures, nor they themselves, failed or skipped.
_ENDED: pytest.StashKey[bool] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker, and what a test needs that runs on pytest-asyncio."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(*faults, assert_all_happened=True): what goes wrong with the test's requests "
        "to conversations_emulator, in sentences such as append(2).loses_its_answer() "
        "(cached_session.testing). A test in which one of them does not happen is in error, unless "
        "it is skipped or fails.",
    )
    # It has been imported by now, if it is there.
    if "pytest_asyncio" in sys.modules:
        from cached_session.testing import on_asyncio

        config.pluginmanager.register(on_asyncio, on_asyncio.__name__)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Has the marker be heard in each test that bears it, whichever fixtures that asks for."""
    if isinstance(item, pytest.Function) and item.get_closest_marker(_MARKER) is not None:
        names = item.fixturenames
        if _conversations_faults.__name__ not in names:
            # Before all others: what they send counts.
            names.insert(0, _conversations_faults.__name__)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Notes which tests ran to their end: of others a fault that did not happen is no error."""
    if call.when == "call":
        item.stash[_ENDED] = call.excinfo is None


@pytest.fixture
def conversations_emulator() -> Iterator[Emulator]:
    """A running Conversations API server of the test's own.

    The marker `conversations_faults` says what goes wrong. Meanwhile test mode is on, see
    `cached_session.testing.set_testing`: nobody waits before a failed request is repeated.
    """
    from cached_session.testing import set_testing

    try:
        from cached_session.emulator import Emulator
    except ImportError as error:
        pytest.fail(f"conversations_emulator: {error}", pytrace=False)
    with set_testing(True), Emulator() as emulator:
        yield emulator


@pytest.fixture
def _conversations_faults(
    request: pytest.FixtureRequest, conversations_emulator: Emulator
) -> Iterator[None]:
    """Has the emulator, whoever has made it, do what the test's marker says; test mode is on."""
    from cached_session.testing import Plan, set_testing

    marks = list(request.node.iter_markers(_MARKER))
    try:
        plan = Plan(*(sentence for mark in marks for sentence in mark.args))
        strict = [_strict(mark) for mark in marks]
    except TypeError as error:
        pytest.fail(f"{_MARKER}: {error}", pytrace=False)
    before = conversations_emulator.faults
    with set_testing(True):
        if marks:
            conversations_emulator.faults = plan
        yield
        conversations_emulator.faults = before
    missed = plan.missed() if request.node.stash.get(_ENDED, False) else []
    if missed and all(strict):
        if "conversations_emulator" not in request.node.fixturenames:
            missed.append(
                "only what is sent to conversations_emulator counts, and the test asks for none "
                "of the fixtures conversations_emulator, conversations_client and cached_session"
            )
        pytest.fail(f"{_MARKER}: " + "\n".join(missed), pytrace=False)


def _strict(mark: pytest.Mark) -> bool:
    if unknown := mark.kwargs.keys() - {"assert_all_happened"}:
        raise TypeError(f"{min(unknown)} is no argument of the marker")
    if not mark.args:
        raise TypeError("it names no fault")
    strict: bool = mark.kwargs.get("assert_all_happened", True)
    return strict


@pytest.fixture
def conversations_client(
    request: pytest.FixtureRequest, conversations_emulator: Emulator, _conversations_faults: None
) -> AsyncOpenAI:
    """A client for `conversations_emulator`, closed at the end of the test, in its event loop.

    A test that is no coroutine closes it itself, if it has sent requests through it.
    """
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=conversations_emulator.base_url, api_key="emulator")
    if (stack := _stack(request)) is not None:
        stack.push_async_callback(client.close)
    return client


@pytest.fixture
def cached_session(
    request: pytest.FixtureRequest, conversations_client: AsyncOpenAI
) -> CachedSession:
    """A session on a new conversation of `conversations_emulator`, closed as the client is."""
    from cached_session import CachedSession

    session = CachedSession(openai_client=conversations_client)
    if (stack := _stack(request)) is not None:
        stack.push_async_callback(session.aclose)
    return session


@pytest.fixture
async def _conversations_stack_on_anyio() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def _stack(request: pytest.FixtureRequest) -> AsyncExitStack | None:
    """What is closed at the test's end, in its event loop; None: it brings none."""
    name = None
    pytest_asyncio = sys.modules.get("pytest_asyncio")
    if pytest_asyncio is not None and pytest_asyncio.is_async_test(request.node):
        from cached_session.testing.on_asyncio import stack_of

        name = stack_of(request)
    elif "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend")
        if (backend if isinstance(backend, str) else backend[0]) != "asyncio":
            pytest.fail(
                "sessions run on asyncio: let your fixture anyio_backend return 'asyncio'",
                pytrace=False,
            )
        name = "_conversations_stack_on_anyio"
    found: AsyncExitStack | None = None if name is None else request.getfixturevalue(name)
    return found
