"""The account of a round: what was called and what returned, and what may follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.campaigns.account import Account, Call, Violation


class Read(NamedTuple):
    """What one read showed.

    Attributes:
        limit: What it was limited to.
        texts: What tells its items.
        ids: Their ids; None: one that waits.
        made: How many calls its process had made.
    """

    limit: int | None
    texts: tuple[str, ...]
    ids: tuple[str | None, ...]
    made: int


@dataclass
class Process:
    """What one process said.

    Attributes:
        name: Its name.
        calls: Its calls, in order.
        reads: What each read showed.
        notes: What else it said, by kind.
    """

    name: str
    calls: list[Call] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)

    def hear(self, entries: Iterable[Sequence[Any]]) -> None:
        """Takes in what it said, in order."""
        for kind, *details in entries:
            if kind == "about":
                self.calls.append(Call(tuple(details[0]), self.name))
            elif kind == "returned":
                self.calls[-1].returns()
            elif kind == "read":
                limit, texts, ids = details
                self.reads.append(Read(limit, tuple(texts), tuple(ids), len(self.calls)))
            elif kind == "event":
                self.events[details[0]] += 1
            else:
                self.notes[kind] = details[0]


Phase = Sequence[Sequence[Call]]
"""The calls of processes that ran at the same time."""


def explained(
    listing: Sequence[str], before: Sequence[str], phases: Sequence[Phase], *, whole: bool
) -> bool:
    """Whether a listing can be what calls have put there.

    Each call that returned is there, the others are or are not, each whole and
    in its process's order, and nothing else is.

    Args:
        listing: The texts, oldest first.
        before: What stood there before.
        phases: One after the other.
        whole: Whether the listing is of all items; otherwise of the newest ones.
    """
    # From the newest item on, so that a listing of a few may end anywhere.
    wanted, length = tuple(listing)[::-1], len(listing)
    reached = {0}
    for phase in [[[Call(tuple(before)).returns()]], *phases][::-1]:
        found: set[int] = set()
        todo = {(tuple(map(len, phase)), place) for place in reached}
        seen = set(todo)
        while todo:
            left, place = todo.pop()
            if not whole and place == length:
                return True
            if not any(left):
                found.add(place)
            for number, count in enumerate(left):
                if not count:
                    continue
                call = phase[number][count - 1]
                fewer = (*left[:number], count - 1, *left[number + 1 :])
                ends = [place] if call.unknown else []
                texts = call.texts[::-1]
                part = wanted[place : place + len(texts)]
                if part == texts[: len(part)] and (len(part) == len(texts) or not whole):
                    ends.append(place + len(part))
                for end in ends:
                    if (fewer, end) not in seen:
                        seen.add((fewer, end))
                        todo.add((fewer, end))
        reached = found
    return length in reached


@dataclass
class Told(Account):
    """What a round's processes did, of which nothing is known but what they have told.

    Attributes:
        before: What stood in the conversation before the first of them.
        phases: The processes of each run.
    """

    before: tuple[str, ...] = ()
    phases: list[list[Process]] = field(default_factory=list)
    _open: list[tuple[int, Process, Read]] = field(default_factory=list)

    def starts(self, texts: Sequence[str]) -> None:
        """The conversation holds this before the first process is run."""
        self.before = tuple(texts)
        self.asks(texts, "before").returns()

    def begins(self, *names: str) -> list[Process]:
        """Processes of these names are run."""
        self.phases.append([Process(name) for name in names])
        return self.phases[-1]

    def hear(self, process: Process, entries: Iterable[Sequence[Any]]) -> None:
        """A process of the newest run has ended and said all this."""
        process.hear(entries)
        self.calls += process.calls

    def _calls(self) -> list[Phase]:
        return [[process.calls for process in phase] for phase in self.phases]

    def check_reads(self) -> None:
        """Checks every read of the newest run.

        One beside another process may show late copies that are that one's to
        remove; whether it did is for `check_end` to say.

        Raises:
            Violation: One shows what cannot be there, or not what must be.
        """
        phase = len(self.phases) - 1
        for process in self.phases[phase]:
            for read in process.reads:
                if self._may_show(phase, process, read, frozenset()):
                    continue
                if len(self.phases[phase]) == 1:
                    raise self._wrong(process, read)
                self._open.append((phase, process, read))

    def _may_show(self, phase: int, process: Process, read: Read, gone: Set[str | None]) -> bool:
        """Whether a read of a run may show this, less the items with ids that are `gone`."""
        # What the process beside it has there at this moment is open.
        others: list[list[Call]] = [
            [Call(call.texts) for call in other.calls]
            for other in self.phases[phase]
            if other is not process
        ]
        whole = read.limit is None or len(read.texts) < read.limit
        phases = [*self._calls()[:phase], [process.calls[: read.made], *others]]
        texts = [text for text, id in zip(read.texts, read.ids, strict=True) if id not in gone]
        return explained(texts, self.before, phases, whole=whole)

    def _wrong(self, process: Process, read: Read) -> Violation:
        return Violation(
            f"{process.name}: a read of {read.limit} after {read.made} calls shows {read.texts}, "
            f"and the calls were {self._calls()}"
        )

    def check_end(self, listing: Sequence[str], ids: Set[str]) -> None:
        """Checks what the server holds in the end, and the reads that were left open.

        Args:
            listing: The texts, oldest first.
            ids: The ids.

        Raises:
            Violation: Something is lost, doubled, out of order, or was never
                sent; or a read showed what cannot be told by late copies that
                were removed since.
        """
        if not explained(tuple(listing), self.before, self._calls(), whole=True):
            found = self.count(listing)
            raise Violation(
                f"{found['lost']} lost, {found['doubled']} doubled; "
                f"the server holds {list(listing)[-400:]}"
            )
        for phase, process, read in self._open:
            gone = {*read.ids} - {*ids, None}
            if not self._may_show(phase, process, read, gone):
                raise self._wrong(process, read)

    @property
    def accepted(self) -> int:
        """How many items were in calls that returned."""
        return sum(len(call.sure) for call in self.calls if call.worker != "before")
