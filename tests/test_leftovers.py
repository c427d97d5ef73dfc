"""What a test that is a coroutine must not leave behind."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CONFTEST = "from tests.conftest import _coroutine_tests_end, client, nothing_left"

VIRTUAL = (
    "from tests.conftest import _coroutine_tests_end\n"
    "from tests.faults.conftest import nothing_left, pytest_asyncio_loop_factories, virtual_loop\n"
)

OPTIONS = (
    "-p",
    "no:cacheprovider",
    "-p",
    "no:hypothesispytest",
    "-p",
    "no:xdist",
    "-o",
    "asyncio_mode=auto",
)

SERVER = """
import pytest
from cached_session.emulator import Emulator

@pytest.fixture
def emulator():
    with Emulator() as emulator:
        yield emulator
"""


@pytest.fixture(autouse=True)
def _settings(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )


@pytest.mark.parametrize("conftest", [CONFTEST, VIRTUAL], ids=["loop", "virtual loop"])
def test_a_task_left_behind_is_an_error(pytester: pytest.Pytester, conftest: str) -> None:
    """A test that leaves a task behind is in error; the one after it is not."""
    pytester.makeconftest(conftest)
    pytester.makepyfile(
        """
        import asyncio

        async def test_leaks():
            global task
            task = asyncio.create_task(asyncio.sleep(3600), name="forgotten")

        async def test_is_tidy():
            await asyncio.create_task(asyncio.sleep(0))
        """
    )
    result = pytester.runpytest_inprocess(*OPTIONS)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaks*", "*left behind*forgotten*"])


def test_a_fixture_that_closes_hides_nothing(pytester: pytest.Pytester) -> None:
    """A fixture that ends a task at its own end comes too late: the test should have done it."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        import asyncio
        import pytest

        @pytest.fixture
        async def closing():
            tasks = []
            yield tasks
            for task in tasks:
                task.cancel()

        async def test_leaks(closing):
            closing.append(asyncio.create_task(asyncio.sleep(3600)))
        """
    )
    pytester.runpytest_inprocess(*OPTIONS).assert_outcomes(passed=1, errors=1)


def test_an_exception_that_nobody_heard_of_is_an_error(pytester: pytest.Pytester) -> None:
    """In virtual time what asyncio would have logged is an error."""
    pytester.makeconftest(VIRTUAL)
    pytester.makepyfile(
        """
        import asyncio

        async def test_fails_unheard():
            asyncio.get_running_loop().call_soon(lambda: 1 / 0)
            await asyncio.sleep(0)
        """
    )
    pytester.runpytest_inprocess(*OPTIONS).assert_outcomes(passed=1, errors=1)


def test_clients_are_closed_in_the_loop_of_the_test(pytester: pytest.Pytester) -> None:
    """A client that a fixture gave is closed after the test, in the test's own loop."""
    pytester.makeconftest(CONFTEST + SERVER)
    pytester.makepyfile(
        """
        import asyncio

        closed = []

        async def test_asks(client):
            loop = asyncio.get_running_loop()
            close = client.close

            async def noted():
                closed.append(asyncio.get_running_loop() is loop)
                await close()

            client.close = noted
            await client.conversations.create()

        def test_was_closed():
            assert closed == [True]
        """
    )
    pytester.runpytest_inprocess(*OPTIONS).assert_outcomes(passed=2)
