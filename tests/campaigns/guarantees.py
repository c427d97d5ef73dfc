"""Measures the tables of `docs/guarantees.md`: `python -m tests.campaigns.guarantees`."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cached_session.emulator import FaultKind
from tests.campaigns.measure import CANNOT, OPERATIONS, Case, Operation, measure
from tests.campaigns.setting import Kind

PAGE: Final = Path(__file__).parents[2] / "docs" / "guarantees.md"

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"

AT_ONCE: Final = 10
"""Calls at the same time, each on a server of its own."""

KINDS: Final[tuple[Kind, ...]] = ("cached", "sdk")

CALLS: Final[dict[Operation, str]] = {
    "create": "the first `get_items()` of a session without an id",
    "append": "`add_items()` with three items",
    "read": "`get_items()` on 130 items",
    "pop": "`pop_item()` on three items",
    "clear": "`clear_session()`",
}

ELSEWHERE: Final[dict[Operation, tuple[str, ...]]] = {
    "create": ("tests/faults/test_outcomes_elsewhere.py", "tests/faults/test_cancelled_ends.py"),
    "append": (
        "tests/faults/test_outcomes.py",
        "tests/faults/test_reconciliation.py",
        "tests/faults/test_in_doubt.py",
        "tests/faults/test_late_commits.py",
    ),
    "read": ("tests/faults/test_outcomes_elsewhere.py",),
    "pop": ("tests/faults/test_pop_and_clear.py",),
    "clear": ("tests/faults/test_pop_and_clear.py",),
}
"""Which tests go further into an operation."""

Row = tuple[str, ...]
"""This session: once, throughout; the SDK's session: once, throughout."""


def rows() -> list[tuple[Operation, FaultKind]]:
    """Every operation with every kind of fault that can befall it."""
    return [
        (operation, fault)
        for operation in OPERATIONS
        for fault in FaultKind
        if Case(operation, fault, throughout=False, kind="cached").possible
    ]


def cases(operation: Operation, fault: FaultKind) -> list[Case]:
    """The cells of one row."""
    return [
        Case(operation, fault, throughout=throughout, kind=kind)
        for kind in KINDS
        for throughout in (False, True)
    ]


async def measured() -> dict[tuple[Operation, FaultKind], Row]:
    """Measures every row."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> str:
        async with slots:
            return await measure(case)

    # What waits longest begins first.
    every = [case for row in rows() for case in cases(*row)]
    every.sort(key=lambda case: (not case.long, not case.throughout))
    seen = dict(zip(every, await asyncio.gather(*map(one, every)), strict=True))
    return {row: tuple(seen[case] for case in cases(*row)) for row in rows()}


def versions() -> str:
    """What the SDK's session was measured with."""
    return f"openai-agents {version('openai-agents')} and openai {version('openai')}"


def render(found: dict[tuple[Operation, FaultKind], Row]) -> str:
    """The part of the page between its markers."""
    lines = [f"Measured with {versions()}.", ""]
    for operation in OPERATIONS:
        further = ", ".join(f"`{path}`" for path in ELSEWHERE[operation])
        lines += [
            f"### {operation.capitalize()}: {CALLS[operation]}",
            "",
            f"Each row is `tests/campaigns/test_guarantees.py::test_row` with the name in its last "
            f"column. Further: {further}.",
            "",
            "| fault | CachedSession, once | CachedSession, throughout "
            "| SDK's session, once | SDK's session, throughout | test |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            "| " + " | ".join((f"`{fault}`", *row, f"`{name(operation, fault)}`")) + " |"
            for (its, fault), row in found.items()
            if its == operation
        ]
        lines.append("")
        never = [f"`{fault}`" for fault in FaultKind if (operation, fault) not in found]
        if never:
            lines += [f"{CANNOT.capitalize()} here: {', '.join(never)}.", ""]
    return "\n".join(lines).rstrip("\n")


def name(operation: Operation, fault: FaultKind) -> str:
    """The name of a row's test."""
    return f"{operation}-{fault}"


def committed() -> str:
    """What the page holds between its markers."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip("\n")


def main() -> int:
    """The command."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = render(asyncio.run(measured()))
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
