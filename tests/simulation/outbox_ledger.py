"""What was accepted, what was popped, and what reads and the server must then show.

The account is the *ideal sequence*: what was recorded, in the order of the
records, less what was popped. It changes when a transaction on the outbox is
committed or the server carries out the delete of a pop, never before and never
later. Whether an item waits, is being sent, or is on the server once, twice for
a moment, or not yet, makes no difference to it.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.campaigns.account import Account, Call, Change, Violation, text_of


def now() -> float:
    """The virtual time."""
    return asyncio.get_running_loop().time()


@dataclass(frozen=True)
class _Entry:
    place: int
    text: str
    at: float
    process: int


class OutboxLedger(Account):
    """The ideal sequence of one conversation, and all that is checked against it.

    Attributes:
        single: Whether there is one process at a time.
        alone: Whether nobody else writes: no foreign writer, either.
        cursors_ignored: Whether the server lists, or listed, from the newest item on
            where it does not know the item behind which it is to begin.
        given_up: Places and texts of batches whose answer was lost, and of which no listing tells
            whether they are there: the foreign writer, or a pop whose process had ended,
            took away what stood before, or the foreign writer's items stand where they
            would. A human has to look, and has it sent again or discards it.
        discards: What a human has discarded, which a process learns of when it claims.
        violations: What was found to be wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.violations: list[Violation] = []
        self.single = self.alone = True
        self.cursors_ignored = False
        self.given_up: dict[int, str] = {}
        self.discards: list[Change] = []
        self._entries: list[_Entry] = []
        self._states: list[tuple[str, ...]] = [()]
        self._changes: list[Change] = []
        self._gone: dict[str, Change] = {}
        # Ids that a process removed after its end: the next one cannot know of it.
        self._ghosts: set[str] = set()
        # The ids under which a text was ever on the server, when they went, and
        # when each process began, which holds what it has listed.
        self._ids: dict[str, list[str]] = {}
        self._left: dict[str, float] = {}
        self._began: dict[int, float] = {}

    @property
    def orphaned(self) -> bool:
        """Whether a delete of a pop was carried out after the end of its process."""
        return bool(self._ghosts)

    def broken(self, what: str) -> Violation:
        """A violation, which counts even where it is raised to those who go on with anything."""
        self.violations.append(Violation(what))
        return self.violations[-1]

    def fill(self, texts: Iterable[str]) -> None:
        """Notes what the conversation holds at the start."""
        self._entries += [_Entry(0, text, -1.0, -1) for text in texts]
        self._states = [self._texts()]

    # What happens

    def accepted(self, call: Call | None, seqs: Sequence[int], items: Sequence[bytes]) -> Change:
        """Items were recorded."""
        texts = tuple(text_of(json.loads(item)) for item in items)
        if call is None or call.kind != "append" or texts != call.texts:
            raise self.broken(f"recorded, and nobody appended it: {texts}")
        if call.places or call.ended is not None:
            raise self.broken(f"recorded twice, or after its append had ended: {texts}")
        call.places = tuple(seqs)
        self._entries += [
            _Entry(seq, text, now(), call.process) for seq, text in zip(seqs, texts, strict=True)
        ]
        call.change = self._changed()
        return call.change

    def withdrawn(self, call: Call | None, seq: int) -> Change:
        """A row was taken back out of the outbox."""
        entry = self._entries[-1]
        if entry.place != seq:
            raise self.broken(f"taken out of the outbox, and not the newest item: {seq}")
        del self._entries[-1]
        return self._removed(call, entry.text, None)

    def deleted(
        self, call: Call, item_id: str, text: str, number: int, waiting: set[int], *, orphan: bool
    ) -> None:
        """The server carried out the delete that a pop sent.

        Args:
            call: The pop.
            item_id: What it deleted.
            text: That item's text.
            number: How many items with this text stood before it on the server.
            waiting: Places of the rows that wait.
            orphan: Whether the process that sent it is gone.
        """
        if text.startswith("foreign"):
            return  # or its writer did, after this pop had tried: that cannot be told
        there = [
            index
            for index, entry in enumerate(self._entries)
            if entry.text == text and entry.place not in waiting
        ]
        if not there:
            raise self.broken(f"a pop removed an item that is not to be there: {text}")
        index = there[min(number, len(there) - 1)]
        early = [other.text for other in self._entries[index + 1 :] if other.at < call.started]
        if self.alone and not orphan and early:
            raise self.broken(f"a pop removed {text}, and {early} stood behind it")
        del self._entries[index]
        change = self._removed(call, text, item_id)
        if orphan:
            self._ghosts.add(item_id)
            change.heard = change.at

    def discarded(self, places: Iterable[int]) -> None:
        """A human has taken out of the outbox what waited at these places, and sends it no more."""
        gone = set(places)
        self._entries = [entry for entry in self._entries if entry.place not in gone]
        self.discards.append(self._changed())

    def _removed(self, call: Call | None, text: str, item_id: str | None) -> Change:
        if call is None or call.kind != "pop":
            raise self.broken(f"removed, and nobody popped it: {text}")
        call.removed.append((text, item_id))
        if len(call.removed) > 1:
            raise self.broken(f"a pop removed more than one item: {call.removed}")
        call.change = self._gone[text] = self._changed()
        return call.change

    def _changed(self) -> Change:
        self._states.append(self._texts())
        self._changes.append(Change(now()))
        return self._changes[-1]

    def heard(self, changes: Iterable[Change], within: float = 0.0) -> None:
        """The process that made changes knows them from now on, or within so many seconds."""
        for change in changes:
            change.heard = min(change.heard, now() + within)

    def deletes_heard(self) -> None:
        """No delete of a pop is on its way any more."""
        self.heard(change for change in self._gone.values())

    def began(self, process: int) -> None:
        """A process begins."""
        if self.single:
            self.heard(self.discards)
        self._began[process] = now()

    def came(self, item_id: str, text: str) -> None:
        """An item is on the server."""
        self._ids.setdefault(text, []).append(item_id)

    def left(self, item_id: str) -> None:
        """An item is not on the server any more."""
        self._left[item_id] = now()

    # What must be true

    def answered(self, call: Call, item: dict[str, Any] | None = None) -> None:
        """An append that returned is recorded whole, one that raised is not.

        A pop that returned an item removed that one; None: there was none.
        """
        if call.change is not None:
            self.heard([call.change])
        if call.kind == "append":
            if (call.ended == "returned") != bool(call.places):
                raise self.broken(f"an append {call.ended} and was recorded as {call.places}")
        elif item is not None:
            foreign = text_of(item).startswith("foreign") and not call.removed
            if not foreign and call.removed != [(text_of(item), item.get("id"))]:
                raise self.broken(f"a pop returned {text_of(item)} and removed {call.removed}")
        elif call.removed:
            raise self.broken(f"a pop returned nothing and removed {call.removed}")
        elif self.alone and all(self._seen(call.started)):
            raise self.broken("a pop returned nothing, and there were items all the time")

    def quiet(self, since: float) -> bool:
        """Whether nothing has changed since then, and all is known that had before."""
        return all(max(change.heard, change.at) < since for change in self._changes)

    def _seen(self, started: float) -> list[tuple[str, ...]]:
        """The states that a read which began at `started` and ends now may show."""
        first = next(
            (
                index
                for index, change in enumerate(self._changes)
                if not max(change.heard, change.at) < started
            ),
            len(self._changes),
        )
        return self._states[first:]

    def check_read(
        self,
        items: list[dict[str, Any]],
        limit: int | None,
        started: float,
        process: int,
        shown: Callable[[str], str | None],
        *,
        settled: bool,
        watched_elsewhere: bool,
    ) -> None:
        """A read shows the ideal sequence as it was at some moment of the read.

        Args:
            items: What it showed.
            limit: What it was limited to.
            started: When it began.
            process: Where.
            shown: What the server lists of an id.
            settled: Whether nothing waited during the read.
            watched_elsewhere: Whether it was for another process to remove late copies.
        """
        for item in items:
            if "id" in item and json.dumps(item, sort_keys=True) != shown(item["id"]):
                raise self.broken(f"a read shows an item as the server does not: {item}")
        waits = [index for index, item in enumerate(items) if "id" not in item]
        settled = settled and self.single and not self.given_up
        if waits and (settled or waits != list(range(waits[0], len(items)))):
            raise self.broken(f"a read shows as waiting what is on the server: {_some(items)}")
        if not self.alone:
            doubled = self._doubled(self._began[process]) if watched_elsewhere else set()
            self._check_own(items, limit, started, process, doubled)
            return
        if any(self._shows(items, state, limit) for state in self._seen(started)):
            return
        raise self.broken(
            f"a read (limit {limit}, {started:.3f} to {now():.3f}) shows what was never so in "
            f"that time:\n  read  {_some(items)}\n"
            + "\n".join(f"  ideal {list(state)[-12:]}" for state in self._seen(started))
        )

    def _shows(
        self, items: list[dict[str, Any]], state: tuple[str, ...], limit: int | None
    ) -> bool:
        for ghosts in (False, True):
            # What a process removed after its end may still be shown.
            left = [item for item in items if not (ghosts and item.get("id") in self._ghosts)]
            newest = limit and max(0, limit - len(items) + len(left))
            count = len(state) if newest is None else min(newest, len(state))
            if tuple(map(text_of, left)) == state[len(state) - count :]:
                return True
        return False

    def _doubled(self, since: float) -> set[str]:
        """Texts that stood on the server twice, and not only before `since`."""
        return {
            text
            for text, ids in self._ids.items()
            if sum(self._left.get(item_id, math.inf) >= since for item_id in ids) > 1
        }

    def _check_own(
        self,
        items: list[dict[str, Any]],
        limit: int | None,
        started: float,
        process: int,
        doubled: set[str],
    ) -> None:
        """Beside other writers: own items are there, in order, once; popped ones are not.

        A late copy that another process looks after is there until that one, or
        its successor, has removed it, item by item, and may have been listed here
        before: what is `doubled` may stand twice, or a limited read shows the
        copy alone.
        """
        asked = Counter(text for call in self.calls for text in call.texts)
        shown = [text_of(item) for item in items if item.get("id") not in self._ghosts]
        # Words that were said twice cannot be told apart.
        texts = [text for text in shown if asked[text] == 1]
        if len(set(texts)) < len(texts) and self.cursors_ignored:
            # Where the foreign writer deletes the very item behind which the
            # next page is to begin, that page begins anew.
            return
        order = {entry.text: index for index, entry in enumerate(self._entries)}
        # Until somebody has decided, what was given up on and did land is shown on the
        # server and, behind that, as waiting.
        waits = {text_of(item) for item in items if "id" not in item}
        unsure = waits.intersection(self.given_up.values())
        once = [
            text_of(item)
            for item in items
            if item.get("id") not in self._ghosts
            and asked[text_of(item)] == 1
            and text_of(item) not in doubled
            and not ("id" in item and text_of(item) in unsure)
        ]
        places = [order[text] for text in once if text in order]
        if len(set(once)) < len(once) or places != sorted(places):
            raise self.broken(f"a read shows items twice or out of order: {texts}")
        gone = [text for text in texts if text in self._gone and self._gone[text].heard < started]
        if gone:
            raise self.broken(f"a read shows what was popped: {gone}")
        if limit is not None:
            return
        lost = [
            text
            for call in self.calls
            if call.ended == "returned" and call.ended_at < started
            for text in call.texts
            if asked[text] == 1 and text in order and text not in texts
        ]
        if lost:
            raise self.broken(
                f"a read in process {process} does not show what had been appended: {lost}"
            )

    def landed_of(
        self, sealed: Sequence[tuple[int, str]], waiting: set[int], listing: Sequence[str]
    ) -> int:
        """How many items of a batch in doubt are on the server, which a human can find out.

        Args:
            sealed: Places and texts of the batch.
            waiting: Places of all that is in the outbox.
            listing: Texts on the server.
        """
        there = Counter(listing)
        there.subtract(entry.text for entry in self._entries if entry.place not in waiting)
        for landed, (_, text) in enumerate(sealed):
            if there[text] < 1:
                return landed
            there[text] -= 1
        return len(sealed)

    def check_end(self, listing: list[dict[str, Any]]) -> None:
        """The server holds what was accepted and not popped, once, in order."""
        texts = tuple(text for text in map(text_of, listing) if not text.startswith("foreign"))
        state = self._states[-1]
        if texts != state:
            lost, doubled = Counter(state) - Counter(texts), Counter(texts) - Counter(state)
            raise self.broken(
                f"at the end: lost {dict(lost)}, too many {dict(doubled)}"
                f"\n  server {list(texts)[-40:]}\n  ideal  {list(state)[-40:]}"
            )
        self._check_workers()

    def _check_workers(self) -> None:
        last: dict[int, int] = {}
        for call in self.calls:
            if call.kind == "append" and call.places:
                if call.places[0] < last.get(call.worker, 0):
                    raise self.broken(f"an append stands before an earlier one: {call.texts}")
                last[call.worker] = call.places[-1]

    def _texts(self) -> tuple[str, ...]:
        return tuple(entry.text for entry in self._entries)


def _some(items: list[dict[str, Any]]) -> list[str]:
    return [text_of(item) + ("" if "id" in item else " (waits)") for item in items[-12:]]
