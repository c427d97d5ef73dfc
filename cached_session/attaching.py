"""Which backlog is a conversation's in an outbox: one, whoever asks."""

from __future__ import annotations

from cached_session.addresses import address_of
from cached_session.backlog import Backlog
from cached_session.connections import Account
from cached_session.outbox import Outbox
from cached_session.replica import Replica


def made_of(outbox: Outbox, owner: Account, local: str) -> str | None:
    """The id of the conversation that was made for a local name in this process, or None."""
    with outbox.lock:
        backlog: Backlog | None = outbox.backlogs.get(address_of(owner, local))
    name = None if backlog is None else backlog.replica.conversation_id
    return None if name == local else name


def attach(outbox: Outbox, owner: Account, replica: Replica) -> Backlog:
    """The one backlog of a conversation; made if there is none.

    Raises:
        OutboxError: The outbox is that of a process from which this one was forked.
        ValueError: The conversation has another outbox in this process, or
            this outbox has the conversation in another cache.
    """
    # Or a session from before the fork would be in the way of the outbox that is made here.
    outbox.check_process()
    name = replica.conversation_id
    address = address_of(owner, name)
    with outbox.lock:
        backlog: Backlog | None = outbox.backlogs.get(address)
        if backlog is None or (backlog.replica is not replica and not backlog.users):
            backlog = Backlog(outbox, address, replica)
        if backlog.replica is not replica:
            raise ValueError(
                f"cache: a session with this outbox has {name} in another cache; give all "
                "sessions on a conversation the same one"
            )
        other = replica.backlog
        # One that is left behind, by a session that was not closed, is in nobody's way.
        if other not in (None, backlog) and (other.users or other.sender.working):
            raise ValueError(
                f"outbox: {name} has another outbox in this process; give all sessions on a "
                "conversation the same one"
            )
        outbox.backlogs[address] = replica.backlog = backlog
        replica.window.recording = backlog.journal.record
        return backlog
