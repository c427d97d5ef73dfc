"""What is closed at the end of a test that pytest-asyncio runs, in the event loop of that test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Literal

import pytest
import pytest_asyncio

_Scope = Literal["function", "class", "module", "package", "session"]


def stack_of(request: pytest.FixtureRequest) -> str:
    """The name of the fixture whose loop is that of the test."""
    mark = request.node.get_closest_marker("asyncio")
    given = {} if mark is None else mark.kwargs
    scope = given.get("loop_scope") or given.get("scope")
    scope = scope or request.config.getini("asyncio_default_test_loop_scope")
    return f"_conversations_stack_on_{scope}"


def _fixture(scope: _Scope) -> Any:
    # Each has a function of its own: pytest-asyncio notes the scope on it.
    async def stack() -> AsyncIterator[AsyncExitStack]:
        async with AsyncExitStack() as found:
            yield found

    return pytest_asyncio.fixture(loop_scope=scope, name=f"_conversations_stack_on_{scope}")(stack)


_on_function = _fixture("function")
_on_class = _fixture("class")
_on_module = _fixture("module")
_on_package = _fixture("package")
_on_session = _fixture("session")
