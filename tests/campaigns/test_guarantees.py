"""`docs/guarantees.md` says what happens: its tables are measured again, row by row."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from cached_session.emulator import FaultKind
from tests.campaigns.guarantees import (
    ELSEWHERE,
    PAGE,
    Row,
    committed,
    measured,
    name,
    render,
    rows,
)
from tests.campaigns.measure import Operation

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


@pytest.mark.campaign
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


@pytest.mark.campaign
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
