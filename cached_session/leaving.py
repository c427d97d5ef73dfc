"""What a session lets go of when it is closed: its backlog, and the outbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cached_session.errands import Errands
from cached_session.operation import Operation
from cached_session.replica import Replica

if TYPE_CHECKING:
    from cached_session.backlog import Backlog
    from cached_session.outbox import Outbox

# What goes on behind a session that did not wait for it.
_left = Errands()


class Leaving:
    """The end of one session, which has given its conversation up.

    Args:
        session: The session.
        replica: The copy that it used last, or None.
        outbox: Its outbox, or None.
        sending: Makes an operation that sends what the outbox holds for a copy.
    """

    def __init__(
        self,
        session: object,
        replica: Replica | None,
        outbox: Outbox | None,
        sending: Callable[[Replica], Operation],
    ) -> None:
        self._session = session
        self._replica = replica
        self._outbox = outbox
        self._sending = sending

    async def run(self, *, wait: bool) -> None:
        """Lets go of what nobody else uses; `wait` says whether a request in flight comes first."""
        if self._outbox is not None:
            self._outbox.users.discard(self._session)
        backlog = None if self._replica is None else self._replica.backlog
        if self._outbox is not None and backlog is not None and not backlog.users:
            backlog.sender.halt()
        leaving = self._let_go(backlog, look=wait)
        if wait or self._idle:
            await leaving
        else:
            # Behind what is in flight: it still notes what becomes of it.
            # An error is nobody's: what is recorded stays, and is the next one's.
            _left.begin(leaving)

    @property
    def _idle(self) -> bool:
        return self._replica is None or self._replica.turns.idle

    async def _let_go(self, backlog: Backlog | None, *, look: bool) -> None:
        if self._outbox is not None:
            await self._leave(self._outbox, backlog, look=look)
        elif self._replica is not None and not look:
            await self._replica.written()

    async def _leave(self, outbox: Outbox, backlog: Backlog | None, *, look: bool) -> None:
        """Lets go of a backlog and an outbox that no other session uses."""
        try:
            if backlog is not None and not backlog.users:
                await backlog.end(self._sending(backlog.replica), look=look)
        except BaseException:
            # Others would wait for what it could not let go of. Whoever still
            # uses the outbox here opens it again.
            await outbox.close()
            raise
        finally:
            if not outbox.users:
                await outbox.close()
