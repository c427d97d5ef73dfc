"""Which backlog is a conversation's in an outbox: one, whoever asks."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit, urlunsplit

from cached_session.backlog import Backlog
from cached_session.connections import Account
from cached_session.outbox import Outbox
from cached_session.outbox.records import Address
from cached_session.replica import Replica


def address_of(owner: Account, conversation: str) -> Address:
    """Under which name an outbox has a conversation of an account.

    A base URL may carry a password, or a key in its query. What an outbox
    records holds neither; they go into the digest.
    """
    parts = urlsplit(owner.base_url)
    host = parts.netloc.rpartition("@")[2]
    base_url = urlunsplit((parts.scheme, host, parts.path, "", ""))
    credentials = owner.credentials if owner.fixed else ""
    if credentials and base_url != owner.base_url:
        told = f"{credentials} {owner.base_url}".encode()
        credentials = hashlib.blake2b(told, digest_size=16).hexdigest()
    return Address(
        base_url, owner.organization or "", owner.project or "", credentials, conversation
    )


def made_of(outbox: Outbox, owner: Account, local: str) -> str | None:
    """The id of the conversation that was made for a local name in this process, or None."""
    with outbox.lock:
        backlog: Backlog | None = outbox.backlogs.get(address_of(owner, local))
    name = None if backlog is None else backlog.replica.conversation_id
    return None if name == local else name


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
        if backlog is None or (backlog.replica is not replica and not backlog.users):
            backlog = Backlog(outbox, address, replica, backlog)
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
