"""Rules of this package's own that no linter knows, and the picture that is drawn from a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached_session.core.ledger import TRANSITIONS, Front
from tests import owners

PACKAGE = Path(__file__).parents[1] / "cached_session"
PAGE = Path(__file__).parents[1] / "docs" / "how-it-works.md"


def modules() -> list[Path]:
    """Every module that is not the ledger's own."""
    core = PACKAGE / "core"
    return [path for path in sorted(PACKAGE.rglob("*.py")) if core not in path.parents]


def test_nobody_else_writes_what_a_ledger_holds() -> None:
    """Outside `core/` no module changes what a ledger holds in another way than by its verbs."""
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{write}"
        for path in modules()
        for write in owners.writes(path.read_text(encoding="utf-8"), owners.typed(PACKAGE))
    ]
    assert not found, "tell the ledger instead, with a verb of `core/ledger.py`:\n" + "\n".join(
        found
    )


@pytest.mark.parametrize(
    "statement",
    [
        "self._ledger.paused = None",
        "ledger.queue.sealed += 1",
        "del ledger.left",
        "ledger.known, other = None, 1",
        "self.order.ledger.own.front = front",
        "ledger.own.items[0] = item",
        "setattr(ledger, 'known', None)",
        "ledger.known.append(held)",
        "self._ledger.watch.sent(items, expires=1.0)",
        "ledger.queue.entries.clear()",
        "ledger.recorded.fire(event)",
        "ledger._take(items)",
        "known = ledger.known\n    known.drop_last()",
        "watch, other = self._ledger.watch, 1\n    extra = watch.extra\n    extra.pop()",
        "history = await fresh(ledger)\n    history.verified = 3",
        "for entry in ledger.queue.entries:\n        entry.at = 0.0",
        "batch.fire(event)",
        "self._batch.items = ()",
        "if (known := ledger.known) is not None:\n        known.remove(item_id)",
    ],
)
def test_who_writes_what_a_ledger_holds_is_found(statement: str) -> None:
    """The rule above sees an assignment, and a call that changes something, by whatever name."""
    source = f"async def work(self, ledger: Ledger, batch: Batch):\n    {statement}\n"
    assert len([*owners.writes(source, {"fresh", "_batch"})]) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "self._ledger = ledger",
        "ledger.sending(batch)",
        "items = ledger.known.items[:]\n    items.append(held)",
        "copies(ledger.known.tail(limit)).append(item)",
        "seen = ledger.queue.seen\n    seen += 1",
        "doubt = ledger.watch.dump([], complete=True, now=0.0, sending=False)",
        "history = History(items, complete=True)\n    history.verified = 3",
        "self.queue.append(item)",
    ],
)
def test_who_reads_a_ledger_is_left_alone(statement: str) -> None:
    """Reading is free, and so is whatever is one's own."""
    source = f"async def work(self, ledger: Ledger, batch: Batch):\n    {statement}\n"
    assert not [*owners.writes(source, {"fresh", "_batch"})]


def test_the_picture_is_the_table() -> None:
    """The diagram in `docs/how-it-works.md` has every entry of the table, and no other."""
    assert owners.drawn(PAGE.read_text(encoding="utf-8")) == owners.diagram(), (
        "docs/how-it-works.md shows another table than cached_session/core/ledger.py has. To draw "
        "it anew: python -m tests.owners"
    )
    arrows = [line for line in owners.diagram().splitlines() if "-->" in line and "[*]" not in line]
    pairs = {(front, following) for front, row in TRANSITIONS.items() for following in row.values()}
    assert len(arrows) == len(pairs)


def test_the_page_names_every_state() -> None:
    """The words around the picture say what each state is."""
    text = PAGE.read_text(encoding="utf-8").replace(owners.diagram(), "")
    for front in Front:
        assert f"`{front.name}`" in text
