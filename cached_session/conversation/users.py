"""Who uses a backlog, and which conversation all of them mean."""

from __future__ import annotations

import weakref
from typing import Protocol


class User(Protocol):
    """What a backlog needs to know of a session that uses it."""

    @property
    def made_elsewhere(self) -> str | None:
        """The id of a conversation that was made beside this one, and is to be used, or None."""

    async def agree(self, made: str, deadline: float) -> str:
        """The conversation to use, now that `made` was made here: that one, or another's."""

    def created(self) -> None:
        """Told that the conversation, which had only a local name, has its own id."""


class Users(weakref.WeakSet[User]):
    """The sessions that use a backlog and are not closed; those that nobody has any more go."""

    def created(self) -> None:
        """Tells all that the conversation has its own id."""
        for user in list(self):
            user.created()

    @property
    def made_elsewhere(self) -> str | None:
        """The id of a conversation that a wrapped session has made meanwhile, or None."""
        made = (user.made_elsewhere for user in list(self))
        return next((name for name in made if name is not None), None)

    async def agree(self, made: str, deadline: float) -> str:
        """The id that all agree on, now that `made` was made here.

        Raises:
            DeadlineExceeded: A wrapped session was making one, too, and did not come to an end.
        """
        for user in list(self):
            agreed = await user.agree(made, deadline)
            if agreed != made:
                return agreed
        return made
