"""What an outbox holds of one conversation, as it is known here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from cached_session.core.history import History
from cached_session.core.items import Outgoing
from cached_session.core.local import LOCAL
from cached_session.core.waiting import Waiting
from cached_session.core.wording import counted
from cached_session.errors import AppendOutcomeUnknown
from cached_session.events import logger
from cached_session.keeping import KeptWindow
from cached_session.operation import Operation, Reopened
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address, Row
from cached_session.outbox.store import Store
from cached_session.outbox.told import Trouble
from cached_session.replica import Replica
from cached_session.signals import Signal

T = TypeVar("T")


class Worker(Protocol):
    """Who sends what waits."""

    @property
    def working(self) -> bool:
        """Whether somebody is at work."""


class Mirror:
    """What an outbox holds of one conversation.

    Attributes:
        outbox: Where it is recorded.
        address: Under which name.
        replica: The conversation's local copy.
        lock: Guards `waiting`, which other threads read.
        waiting: The items that are accepted and not on the server.
        changed: Fired whenever the above may have changed.
        batch: The places of the sealed items that are not known to have landed.
        paused: Why nothing is sent any more, or None.
        refusal: The error that this came from, if it was met here.
        worker: Who sends it.
    """

    def __init__(self, outbox: Outbox, address: Address, replica: Replica) -> None:
        self.outbox = outbox
        self.address = address
        self.replica = replica
        self.lock = threading.Lock()
        self.waiting = Waiting()
        self.changed = Signal()
        self.batch: list[int] = []
        self.paused: str | None = None
        self.refusal: Exception | None = None
        self.worker: Worker | None = None
        self._kept = KeptWindow(wanted=outbox.max_window_bytes > 0)
        # What the outbox was opened as when it was read.
        self._token: str | None = None
        self.outdated = False
        """Whether the outbox was opened anew since it was read."""

    @property
    def local(self) -> bool:
        """Whether the server has not created the conversation yet."""
        return self.replica.conversation_id.startswith(LOCAL)

    @property
    def holds(self) -> bool:
        """Whether others are kept from sending, or may be: nobody has heard yet."""
        return self in self.outbox.holdings

    @holds.setter
    def holds(self, value: bool) -> None:
        (self.outbox.holdings.add if value else self.outbox.holdings.discard)(self)

    @property
    def abandoned(self) -> bool:
        """Whether nobody works on it here: no sender, and nobody in the turn whose loop runs."""
        turn = self.replica.turns.current
        return (turn is None or turn.lost) and not (self.worker and self.worker.working)

    @property
    def keeps_windows(self) -> bool:
        """Whether what is known of the conversation is kept for the next process."""
        return self.outbox.max_window_bytes > 0

    async def _transact(self, work: Callable[[Store, Address], T]) -> T:
        def checked(store: Store) -> T:
            # By their places alone, another file's items would be taken for known ones.
            if store.token != self._token:
                self.outdated = True
                raise Reopened("the outbox was closed during this call; nothing was recorded by it")
            return work(store, self.address)

        return await self.outbox.transact(checked)

    @property
    def why_paused(self) -> str:
        """What is so while it is paused, and what somebody can do."""
        return (
            f"{self.replica.conversation_id}: {_why(self.paused or '')} ({self.paused}); "
            f"{counted(len(self.waiting))} kept in the outbox and not sent. {self.outbox.advice}"
        )

    def _tell_of_pause(self) -> None:
        """Logs that it is paused, or is no longer, if that is news."""
        told, address = self.outbox.told, self.address
        if self.paused is None:
            if told.over(address, Trouble.PAUSED):
                logger.info(
                    "%s: the backlog is not paused any more; it is sent from here on: %s",
                    self.replica.conversation_id,
                    counted(len(self.waiting)),
                )
        elif told.news(address, Trouble.PAUSED):
            logger.warning("%s", self.why_paused)

    def _shown(self) -> History | None:
        """What may be shown before what waits; not while late copies are to be removed of it."""
        window = self.replica.window
        return None if window.unsettled.extra else window.history

    def show_nothing(self) -> None:
        """Forgets what stands on the server before what waits; it is read anew."""
        with self.lock:
            self.waiting.show_behind(None)

    def _rename(self, operation: Operation) -> None:
        self.replica.rename(self.address.conversation)
        operation.conversation_id = self.address.conversation
        with self.outbox.lock:
            self.outbox.backlogs[self.address] = self.replica.backlog
        if self.replica.backlog is not None:
            self.replica.backlog.users.created()


def _why(reason: str) -> str:
    """What a pause is about, by the reason that is recorded."""
    if reason.startswith(AppendOutcomeUnknown.__name__):
        why = "whether a recorded batch is on the server cannot be found out"
        if reason.endswith("other texts"):
            why += (
                ": items of the same types and roles with other texts stand where it would, which "
                "are that batch, rewritten by the server, or another writer's"
            )
        return why
    if ", status " in reason:
        return "the server refused a recorded batch"
    return "a recorded batch could not be sent"


def plain(rows: Iterable[Row]) -> list[tuple[int, Outgoing, float]]:
    """Rows as `Waiting` takes them in."""
    return [(row.seq, row.data, row.accepted_at) for row in rows]
