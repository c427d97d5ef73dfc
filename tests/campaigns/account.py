"""The account of a run: what was asked for, what was answered, and what must then be true.

Every world keeps it, and counts with it. Where the server can be watched, it also says which
reads are true (`Served`); where the outbox can, the ideal sequence is known at each moment
(`tests/simulation/outbox_ledger.py`); where processes are killed, only what they have told is,
and the ideal sequence is any that explains it (`tests/crashes/account.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Item = dict[str, Any]
Listing = tuple[str, ...]

BATCH = 20
"""Items that one request may append."""

_NAME = re.compile(r"\[([^]]*)\]")


class Violation(AssertionError):
    """A promise was not kept: the only failure that speaks of the account."""


def text_of(item: Item) -> str:
    """The text or call id by which an account knows an item."""
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


def said_to_have_landed(error: Exception) -> int:
    """How many items landed, as the exception's note says it; none if it says nothing."""
    for note in getattr(error, "__notes__", ()):
        if "the first " in note:
            return int(note.partition("the first ")[2].split()[0])
    return 0


@dataclass(eq=False)
class Change:
    """One step of the ideal sequence.

    Attributes:
        at: When it was committed.
        heard: Since when every read of its process must show it.
    """

    at: float
    heard: float = math.inf


@dataclass(eq=False, repr=False)
class Call:
    """One append or pop: what it was to do, and what it did.

    Attributes:
        texts: What it appends, in order; a pop: nothing.
        worker: Who made it.
        kind: "append" or "pop".
        process: The number of the process it was made in.
        started: When.
        landed: How many items landed for certain, None while it is not known.
        unknown: Whether more than `landed` may have landed.
        ended: "returned" or "raised"; None: it goes on, was cancelled, or its process crashed.
        ended_at: When.
        places: Under which places it was recorded.
        change: What became of the ideal sequence by that.
        removed: Texts and ids (None: from the outbox) of what it removed.
    """

    texts: tuple[str, ...]
    worker: Any = None
    kind: str = "append"
    process: int = 0
    started: float = -math.inf
    landed: int | None = None
    unknown: bool = True
    ended: str | None = None
    ended_at: float = math.inf
    places: tuple[int, ...] = ()
    change: Change | None = None
    removed: list[tuple[str, str | None]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"{self.kind}{self.texts} {self.ended or 'did not end'}"

    @property
    def sure(self) -> tuple[str, ...]:
        """The items that are there for certain, unless somebody removed them."""
        return self.texts[: self.landed or 0]

    @property
    def possible(self) -> tuple[str, ...]:
        """The items that may be there. What was said not to have landed must not be."""
        return self.texts if self.unknown else self.sure

    def returns(self, at: float = 0.0) -> Call:
        """Notes that it returned: it was done, wholly."""
        self.landed, self.unknown = len(self.texts), False
        self.ended, self.ended_at = "returned", at
        return self

    def raises(self, at: float, landed: int | None, *, unknown: bool) -> None:
        """Notes that it raised, and what is known to have landed by then."""
        self.landed, self.unknown = landed, unknown
        self.ended, self.ended_at = "raised", at


@dataclass
class Account:
    """Everything that was asked for on one conversation, and what was answered.

    Attributes:
        calls: All appends and pops.
        popped: What was removed, and how often.
        told: Items of which somebody was told that they may be copies that came late.
    """

    calls: list[Call] = field(default_factory=list)
    popped: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)

    def asks(self, texts: Iterable[str], worker: Any, **about: Any) -> Call:
        """A worker makes a call."""
        self.calls.append(Call(tuple(texts), worker, **about))
        return self.calls[-1]

    def answered(self, call: Call, item: Item | None = None) -> None:
        """A call has returned, or an append has raised; a pop returned this item."""
        if item is not None:
            self.popped[text_of(item)] += 1

    @property
    def doubtful_pops(self) -> int:
        """How many pops may have removed an item that nobody got."""
        return sum(call.kind == "pop" and call.ended != "returned" for call in self.calls)

    def lost(self, texts: Iterable[str]) -> Counter[str]:
        """What landed, was not removed by a pop that returned, and is not on the server."""
        sure = Counter(text for call in self.calls for text in call.sure)
        return sure - self.popped - Counter(texts)

    def doubled(self, texts: Iterable[str]) -> Counter[str]:
        """What was stored more often than anybody asked for."""
        found = Counter(texts)
        found.update(self.popped)
        found.subtract(text for call in self.calls for text in call.possible)
        found.subtract(self.told)
        return +found

    def count(self, texts: Sequence[str]) -> Counter[str]:
        """How many items were sent, are lost, and stand on the server too often."""
        lost = max(0, self.lost(texts).total() - self.doubtful_pops)
        sent = sum(len(call.texts) for call in self.calls)
        return Counter(sent=sent, lost=lost, doubled=self.doubled(texts).total())


@dataclass
class Served(Account):
    """The account where all that the server ever held is known.

    Attributes:
        states: What it held, since when.
    """

    states: list[tuple[float, Listing]] = field(default_factory=list)

    def state(self, now: float, listing: Listing) -> None:
        """Notes what the server holds from now on."""
        if not self.states or self.states[-1][1] != listing:
            self.states.append((now, listing))

    def check_read(
        self, items: list[Item], limit: int | None, started: float, ended: float
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

    def check_end(self, listing: list[Item], split: set[str], *, abandoned: int) -> None:
        """Nothing lost, nothing doubled, order kept, batches contiguous.

        Args:
            listing: What the server holds in the end.
            split: Items of batches of which the server stored only a part at first.
            abandoned: How many writes failed behind a caller who was cancelled.
        """
        texts = [text_of(item) for item in listing]
        found = Counter(texts)
        doubled = {text: found[text] for text in self.doubled(texts) if found[text]}
        if doubled:
            raise Violation(f"on the server more often than appended: {doubled}")
        lost = self.lost(texts)
        if lost.total() > self.doubtful_pops:
            raise Violation(f"appended, never removed, not on the server: {dict(lost)}")
        self._check_order(texts, split)
        if not abandoned and not self.doubtful_pops and not self.told:
            self._check_halves(found)

    def _check_halves(self, found: Counter[str]) -> None:
        """Of an append whose caller was cancelled there are the first requests, each whole."""
        asked = Counter(text for call in self.calls for text in call.possible)
        for call in self.calls:
            if call.landed is not None:
                continue
            before = True
            for start in range(0, len(call.texts), BATCH):
                there = [
                    bool(found[text] + self.popped[text])
                    for text in call.texts[start : start + BATCH]
                    if asked[text] == 1
                ]
                if any(there) and not (before and all(there)):
                    raise Violation(f"a cancelled append is half applied: {call.texts}")
                before = before and all(there)

    def _check_order(self, texts: list[str], split: set[str]) -> None:
        place = {text: index for index, text in enumerate(texts)}
        # Words that were said twice cannot be told apart; they count, but not here.
        asked = Counter(text for call in self.calls for text in call.texts)
        # Nor can copies of which somebody was told.
        unique = {text for text in texts if asked[text] == 1 and not self.told[text]}
        last: dict[Any, int] = {}
        for call in self.calls:
            places = [place[text] for text in call.texts if text in unique]
            if places != sorted(places):
                raise Violation(f"the items of an append are out of order: {call.texts}")
            whole = not call.unknown and len(places) == len(call.texts)
            if whole and 0 < len(places) <= BATCH and not split.intersection(call.texts):
                span = places[-1] - places[0] + 1
                if span != len(places):
                    raise Violation(f"another item stands inside a batch: {call.texts}")
            if call.landed is not None and not call.unknown and places:
                if last.get(call.worker, -1) > places[0]:
                    raise Violation(f"an append stands before an earlier one: {call.texts}")
                last[call.worker] = places[-1]


def _texts(state: Listing) -> list[str]:
    return [text_of(json.loads(item)) for item in state]
