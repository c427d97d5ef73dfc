"""Which backlog is a conversation's in an outbox: one, whoever asks."""

from __future__ import annotations

from cached_session.conversation.addresses import address_of
from cached_session.conversation.backlog import Backlog
from cached_session.conversation.conversation import Conversation
from cached_session.conversation.users import User
from cached_session.outbox import Outbox
from cached_session.server.connections import Account


def made_of(outbox: Outbox, owner: Account, local: str) -> str | None:
    """The id of the conversation that was made for a local name in this process, or None."""
    with outbox.lock:
        backlog: Backlog | None = outbox.backlogs.get(address_of(owner, local))
    name = None if backlog is None else backlog.order.ledger.conversation_id
    return None if name == local else name


def attach(
    outbox: Outbox, owner: Account, conversation: Conversation, user: User | None
) -> Backlog:
    """The one backlog of a conversation; made if there is none.

    Args:
        outbox: Where it is recorded.
        owner: Whose conversation it is.
        conversation: The conversation.
        user: Who uses it from now on; None: a session that was closed meanwhile.

    Raises:
        OutboxError: The outbox is that of a process from which this one was forked.
        ValueError: The conversation has another outbox in this process, or
            this outbox has the conversation in another cache.
    """
    # Or a session from before the fork would be in the way of the outbox that is made here.
    outbox.check_process()
    name, order = conversation.conversation_id, conversation.order
    address = address_of(owner, name)
    with outbox.lock:
        found: Backlog | None = outbox.backlogs.get(address)
        if found is not None and found.order is not order and found.users:
            raise ValueError(
                f"cache: a session with this outbox has {name} in another cache; give all "
                "sessions on a conversation the same one"
            )
        backlog = found if found is not None and found.order is order else None
        other = conversation.backlog
        # One that is left behind, by a session that was not closed, is in nobody's way.
        if other is None or other is backlog or not (other.users or other.sender.working):
            other = None
        elif other.users or not outbox.same_as(other.record.outbox):
            raise ValueError(
                f"outbox: {name} has another outbox in this process; give all sessions on a "
                "conversation the same one"
            )
        if backlog is None:
            left = [one for one in (found, other) if one is not None]
            backlog = conversation.attach(outbox, address, left)
        outbox.backlogs[address] = conversation.backlog = backlog
        if user is not None:
            backlog.users.add(user)
            backlog.record.come()
        return backlog
