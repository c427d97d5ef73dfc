"""What `CachedSession.turn` returns."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

from cached_session.conversation.conversation import Conversation
from cached_session.conversation.turns import Run
from cached_session.errors import CachedSessionError
from cached_session.session.binding import Binding


class SessionTurn(AbstractAsyncContextManager[None]):
    """The turn on the conversation that a session is on when it is entered."""

    def __init__(self, binding: Binding, wait: float | None) -> None:
        """Takes nothing yet.

        Args:
            binding: The session's.
            wait: Seconds to wait for the turn; None: as long as a call may take.
        """
        self._binding = binding
        self._wait = wait
        # One for each time that it was entered; None: the task had the turn already.
        self._entered: list[tuple[Conversation, Run] | None] = []

    async def __aenter__(self) -> None:
        self._entered.append(await self._binding.usable().begin_run(self._wait))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entered = self._entered.pop()
        if entered is None:
            return
        conversation, run = entered
        if exc_type is GeneratorExit:
            # A generator that nobody goes on with, as of a stream whose reader has left, or a
            # coroutine that its event loop has left lying: there is nobody who could wait.
            conversation.drop_run(run)
            return
        try:
            await conversation.end_run(run)
        except CachedSessionError as error:
            if exc is None:
                raise
            # What went wrong in the run must reach the caller.
            exc.add_note(f"the turn could not be given back: {error}")
