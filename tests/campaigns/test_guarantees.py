"""`docs/guarantees.md` says what happens: its tables are measured again, row by row."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest
from openai import APIConnectionError

from cached_session import CachedSession, ConversationCache, RetryPolicy
from cached_session.emulator import Emulator, FaultKind
from tests.campaigns.guarantees import (
    AT_ONCE,
    ELSEWHERE,
    PAGE,
    Row,
    committed,
    measured,
    name,
    render,
    rows,
)
from tests.campaigns.measure import Case, Operation, measure
from tests.clients import HTTP_KINDS, HttpKind, openai_client

pytestmark = pytest.mark.campaign

Found = dict[tuple[Operation, FaultKind], Row]

RAISES = r"raises \w+"
KEPT = {
    # A lost answer leaves an empty conversation behind; the session is on one of them.
    "create": rf"(returns; (one|two) conversations?|{RAISES}; \w+ conversations?)",
    "append": r"(returns; stored once|raises AppendOutcomeUnknown; (not stored|stored once)"
    r"|raises (?!AppendOutcomeUnknown)\w+; not stored)",
    "read": rf"(returns all items|{RAISES})",
    "pop": rf"(returns the item; one item removed|{RAISES}; (one|no) item removed)",
    "clear": rf"(returns; deleted|{RAISES}; (not )?deleted)",
}
"""What a caller may see of this session, whatever the page says."""


@pytest.fixture(scope="module", name="found")
def _found() -> Found:
    """Every row, measured once for all tests of this module."""
    return asyncio.run(measured())


@pytest.mark.parametrize(
    ("operation", "fault"), [pytest.param(*row, id=name(*row)) for row in rows()]
)
def test_row(operation: Operation, fault: FaultKind, found: Found) -> None:
    """A row of the page is what is measured, and keeps what the page promises."""
    for seen in found[operation, fault][:2]:
        assert re.fullmatch(KEPT[operation], seen)
    here, expected = render(found).splitlines(), committed().splitlines()
    end = f"| `{name(operation, fault)}` |"
    (row,) = (line for line in here if line.endswith(end))
    (line,) = (line for line in expected if line.endswith(end))
    # The SDK's session may do otherwise in another release than the page names.
    same = None if here[0] == expected[0] else 3
    assert row.split(" | ")[:same] == line.split(" | ")[:same]


@pytest.mark.parametrize("http", [kind for kind in HTTP_KINDS if kind != "default"])
async def test_http_clients(http: HttpKind) -> None:
    """Every fault, once, over every HTTP client: what the page promises is kept there, too."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(operation: Operation, fault: FaultKind) -> str:
        async with slots:
            case = Case(operation, fault, throughout=False, kind="cached", http=http)
            seen = await measure(case)
            kept = re.fullmatch(KEPT[operation], seen)
            return "" if kept else f"{name(operation, fault)}: {seen}"

    # A create that is lost leaves an empty conversation behind, over any client.
    said = await asyncio.gather(*(one(*row) for row in rows() if row[0] != "create"))
    assert [row for row in said if row] == []


async def test_no_connection_over_any_http_client() -> None:
    """Where nobody listens, an append over a client that is known raises that, without doubt."""
    with Emulator() as emulator:
        for http in ("default", "aiohttp", "own", "legacy"):
            async with openai_client(http, emulator.base_url, 5.0) as client:
                session = CachedSession(
                    openai_client=client,
                    cache=ConversationCache(),
                    retry=RetryPolicy(max_attempts=2, initial_delay=0.01),
                )
                await session.get_items()
                # Only the address: a connection that is kept would be reset.
                client.base_url = _nowhere()
                with pytest.raises(APIConnectionError) as caught:
                    await session.add_items([{"role": "user", "content": "one"}])
                assert "nothing was stored" in str(caught.value.__notes__)


def _nowhere() -> str:
    """A base URL at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_page(found: Found) -> None:
    """The page holds the measured tables, no row more and no row less."""
    rendered, expected = render(found).splitlines(), committed().splitlines()
    if rendered[0] == expected[0]:
        assert rendered == expected
    else:
        assert [line.split(" | ")[-1] for line in rendered[1:]] == [
            line.split(" | ")[-1] for line in expected[1:]
        ]


def test_named_tests_exist() -> None:
    """Every test file that the page names is there."""
    root = PAGE.parents[1]
    named = set(re.findall(r"`(tests/[\w/]+\.py)", PAGE.read_text(encoding="utf-8")))
    assert named >= {path for paths in ELSEWHERE.values() for path in paths}
    assert [path for path in sorted(named) if not Path(root, path).exists()] == []
