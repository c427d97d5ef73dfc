"""Which backlog is a conversation's in an outbox: one, whoever asks."""

from __future__ import annotations

from cached_session.backlog import Backlog
from cached_session.connections import Account
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address
from cached_session.replica import Replica


def address_of(owner: Account, conversation: str) -> Address:
    """Under which name an outbox has a conversation of an account."""
    return Address(
        owner.base_url,
        owner.organization or "",
        owner.project or "",
        owner.credentials if owner.fixed else "",
        conversation,
    )


def attach(outbox: Outbox, owner: Account, replica: Replica) -> Backlog:
    """The one backlog of a conversation; made if there is none.

    Raises:
        ValueError: The conversation has another outbox in this process, or
            this outbox has the conversation in another cache.
    """
    name = replica.conversation_id
    address = address_of(owner, name)
    with outbox.lock:
        backlog: Backlog | None = outbox.backlogs.get(address)
        if backlog is None or (backlog.replica is not replica and not backlog.bindings):
            backlog = Backlog(outbox, address, replica)
        if backlog.replica is not replica:
            raise ValueError(
                f"cache: a session with this outbox has {name} in another cache; give all "
                "sessions on a conversation the same one"
            )
        other = replica.backlog
        # One that is left behind, by a session that was not closed, is in nobody's way.
        if other not in (None, backlog) and (other.bindings or other.sender.working):
            raise ValueError(
                f"outbox: {name} has another outbox in this process; give all sessions on a "
                "conversation the same one"
            )
        outbox.backlogs[address] = replica.backlog = backlog
        replica.window.recording = backlog.journal.record
        return backlog
