"""How many items are lost and doubled, counted the same way for every kind of session."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.campaigns.world import World
from tests.simulation.ledger import text_of


@dataclass(frozen=True)
class Count:
    """What became of the items of some runs.

    Attributes:
        sent: Items that were given to `add_items`.
        lost: Items of appends that returned, which nobody removed and the server does not hold.
        doubled: Copies beyond the first that the server stored.
    """

    sent: int
    lost: int
    doubled: int

    def __add__(self, other: Count) -> Count:
        return Count(self.sent + other.sent, self.lost + other.lost, self.doubled + other.doubled)


def count(world: World) -> Count:
    """Counts one run that is over, in which no two items are equal."""
    ledger = world.ledger
    held = Counter(map(text_of, world.listing))
    held.update(ledger.popped)
    texts = [text for append in ledger.appended for text in append.texts]
    sure = [text for append in ledger.appended for text in append.texts[: append.landed or 0]]
    missing = sum(not held[text] for text in sure)
    return Count(
        sent=len(texts),
        # A pop whose caller got no item may have removed one.
        lost=max(0, missing - ledger.doubtful_pops),
        doubled=sum(max(0, held[text] - 1) for text in texts),
    )
