"""What was asked for, what was answered, and what must then be true."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Listing = tuple[str, ...]

BATCH = 20
"""Items that one request may append."""

_NAME = re.compile(r"\[([^]]*)\]")


class Violation(AssertionError):
    """An invariant does not hold."""


def text_of(item: dict[str, Any]) -> str:
    """The text or call id by which the campaign knows an item."""
    if item.get("type") == "function_call_output":
        return f"output {item['call_id']}"
    if "call_id" in item:
        return f"call {item['call_id']}"
    content = item["content"]
    text = str(content[0]["text"] if isinstance(content, list) else content)
    # Whatever a server leaves of a text that it rewrites, its name is left. Where none
    # does, no text has a name in it, and each counts as it is, to the letter.
    found = _NAME.search(text)
    return text if found is None else found[1]


@dataclass
class Appended:
    """One append and what became of it.

    Attributes:
        texts: Its items, in order.
        worker: Who made it.
        number: The worker's own count of appends.
        landed: How many items landed for certain, None while it is not known.
        unknown: Whether more than `landed` may have landed.
    """

    texts: tuple[str, ...]
    worker: int
    number: int
    landed: int | None = None
    unknown: bool = True


@dataclass
class Ledger:
    """Everything that happened on one conversation."""

    appended: list[Appended] = field(default_factory=list)
    popped: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    doubtful_pops: int = 0
    states: list[tuple[float, Listing]] = field(default_factory=list)

    def tell(self, texts: Iterable[str]) -> None:
        """Somebody was told that these items may be copies that came late."""
        self.told.update(texts)

    def state(self, now: float, listing: Listing) -> None:
        """Notes what the server holds from now on."""
        if not self.states or self.states[-1][1] != listing:
            self.states.append((now, listing))

    def check_read(
        self, items: list[dict[str, Any]], limit: int | None, started: float, ended: float
    ) -> None:
        """A read equals what the server held at some moment of it."""
        got = tuple(json.dumps(item, sort_keys=True) for item in items)
        for index, (_, state) in enumerate(self.states):
            until = self.states[index + 1][0] if index + 1 < len(self.states) else ended
            if until < started:
                continue
            if got == (state if limit is None else state[len(state) - min(limit, len(state)) :]):
                return
        raise Violation(
            f"a read (limit {limit}, {started:.3f} to {ended:.3f}) shows what the server never "
            f"held in that time:\n  read   {_texts(got)}\n  server {_texts(self.states[-1][1])}"
        )

    def check_end(
        self, listing: list[dict[str, Any]], split: set[str], *, others: bool, abandoned: int
    ) -> None:
        """Nothing lost, nothing doubled, order kept, batches contiguous.

        Args:
            listing: What the server holds in the end.
            split: Items of batches of which the server stored only a part at first.
            others: Whether another writer was about.
            abandoned: How many writes failed behind a caller who was cancelled.
        """
        texts = [text_of(item) for item in listing]
        found = Counter(texts)
        asked, least = Counter[str](), Counter[str]()
        for append in self.appended:
            asked.update(append.texts)
            least.update(append.texts[: append.landed or 0])
            if not append.unknown:
                # What was said not to have landed must not be there.
                asked.subtract(append.texts[append.landed or 0 :])
        doubled = {
            text: found[text]
            for text in found
            if found[text] > asked[text] - self.popped[text] + self.told[text]
        }
        if doubled:
            raise Violation(f"on the server more often than appended: {doubled}")
        lost = least - self.popped - found
        if not others and lost.total() > self.doubtful_pops:
            raise Violation(f"appended, never removed, not on the server: {dict(lost)}")
        self._check_order(texts, split)
        if not abandoned and not self.doubtful_pops and not self.told:
            self._check_halves(found, asked)

    def _check_halves(self, found: Counter[str], asked: Counter[str]) -> None:
        """Of an append whose caller was cancelled there are the first requests, each whole."""
        for append in self.appended:
            if append.landed is not None:
                continue
            before = True
            for start in range(0, len(append.texts), BATCH):
                there = [
                    bool(found[text] + self.popped[text])
                    for text in append.texts[start : start + BATCH]
                    if asked[text] == 1
                ]
                if any(there) and not (before and all(there)):
                    raise Violation(f"a cancelled append is half applied: {append.texts}")
                before = before and all(there)

    def _check_order(self, texts: list[str], split: set[str]) -> None:
        place = {text: index for index, text in enumerate(texts)}
        # Words that were said twice cannot be told apart; they count, but not here.
        asked = Counter(text for append in self.appended for text in append.texts)
        # Nor can copies of which somebody was told.
        unique = {text for text in texts if asked[text] == 1 and not self.told[text]}
        last: dict[int, int] = {}
        for append in self.appended:
            places = [place[text] for text in append.texts if text in unique]
            if places != sorted(places):
                raise Violation(f"the items of an append are out of order: {append.texts}")
            whole = not append.unknown and len(places) == len(append.texts)
            if whole and len(places) <= BATCH and not split.intersection(append.texts):
                span = places[-1] - places[0] + 1
                if span != len(places):
                    raise Violation(f"another item stands inside a batch: {append.texts}")
            if append.landed is not None and not append.unknown and places:
                if last.get(append.worker, -1) > places[0]:
                    raise Violation(f"an append stands before an earlier one: {append.texts}")
                last[append.worker] = places[-1]


def _texts(state: Listing) -> list[str]:
    return [text_of(json.loads(item)) for item in state]
