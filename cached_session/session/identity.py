"""Which conversation a session is on, and that a wrapped session agrees."""

from __future__ import annotations

import asyncio
from typing import cast

from agents import OpenAIConversationsSession

from cached_session.conversation.conversation import Conversation
from cached_session.core.local import LOCAL
from cached_session.errors import DeadlineExceeded
from cached_session.session.creating import NEW


class Identity:
    """The id of one session's conversation.

    Args:
        underlying: The session that is wrapped, which then keeps the id, or None.
        conversation_id: The conversation, or None: made on first use.
    """

    def __init__(
        self, underlying: OpenAIConversationsSession | None, conversation_id: str | None
    ) -> None:
        self._underlying = underlying
        self._id = conversation_id
        # The copy of a conversation that has only a local name.
        self._local: Conversation | None = None

    @property
    def wraps(self) -> bool:
        """Whether there is a wrapped session."""
        return self._underlying is not None

    @property
    def id(self) -> str | None:
        """The conversation's id, or its local name; None before there is one."""
        self.created()
        return self._id if self._underlying is None or self._local is not None else self._wrapped()

    @id.setter
    def id(self, value: str | None) -> None:
        self._local = None
        if self._underlying is not None:
            # The SDK's setter takes None; its annotation does not say so.
            self._underlying.session_id = cast(str, value)
        self._id = value

    def wait_as(self, conversation: Conversation) -> None:
        """Goes by the local name of a conversation that the server has not made yet."""
        self._local, self._id = conversation, conversation.conversation_id

    def created(self) -> None:
        """Takes over the id of a conversation that had only a local name, if it has one now."""
        conversation = self._local
        if conversation is not None and not conversation.conversation_id.startswith(LOCAL):
            self.id = conversation.conversation_id

    @property
    def made_elsewhere(self) -> str | None:
        """The id of a conversation that the wrapped session has made while ours waits, or None."""
        return None if self._local is None else self._wrapped()

    async def agree(self, made: str, deadline: float) -> str:
        """The conversation to use, now that `made` was made for what waits: that one, or another's.

        Args:
            made: Its id.
            deadline: Until when to wait for the wrapped session, on the running loop's clock.

        Raises:
            DeadlineExceeded: The wrapped session was making one, too, and took too long.
        """
        if self._underlying is None or self._local is None:
            return made
        if self.made_elsewhere is None:
            self._underlying.session_id = made
        await self.settled(deadline)
        return self.made_elsewhere or made

    async def settled(self, deadline: float) -> None:
        """Waits for a conversation that the wrapped session may be making at this moment.

        Then both mean the same one.

        Raises:
            DeadlineExceeded: It took too long.
        """
        if self._underlying is None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                # With an id there this sends nothing.
                await self._underlying.get_items(limit=0)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{NEW}: the wrapped session's own request took until the deadline; "
                "nothing was read or written",
                conversation_id=self.id,
            ) from None

    def _wrapped(self) -> str | None:
        try:
            return None if self._underlying is None else self._underlying.session_id
        except ValueError:  # the SDK's way to say that there is none yet
            return None
