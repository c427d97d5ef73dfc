"""What an outbox keeps, as plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from cached_session.core.queue import Row as Row  # what a log keeps, too

# What stands before the name of an account in the place of a digest, which has no colon.
NAMED = "account:"


class Address(NamedTuple):
    """Which conversation a backlog is for, and whose it is.

    Attributes:
        base_url: The API's base URL.
        organization: The organisation's id, or "".
        project: The project's id, or "".
        credentials: `NAMED` and the account's name, where the outbox has one;
            otherwise a digest of the API key and headers, or "" for a client
            whose key is not fixed. Never the key itself.
        conversation: The conversation's id; before it could be created, a
            local name that begins with `LOCAL`.
    """

    base_url: str
    organization: str
    project: str
    credentials: str
    conversation: str

    @property
    def account(self) -> str | None:
        """The name of the account, if the outbox gave it one."""
        named = self.credentials.startswith(NAMED)
        return self.credentials.removeprefix(NAMED) if named else None


def whose(address: Address) -> str:
    """Whose a backlog is, in words: enough to tell a few of them apart, and no key."""
    if address.account is not None:
        return f"account {address.account!r}"
    digest = address.credentials
    return f"a key with digest {digest[:8]}..." if digest else "a client without a fixed key"


class Claim(Enum):
    """How somebody came to own a backlog.

    Attributes:
        KEPT: Nobody else has had it since they had, or nobody ever had.
        TAKEN: Somebody else had it last. What was known of it may have changed.
    """

    KEPT = "kept"
    TAKEN = "taken"


class Mark(NamedTuple):
    """Where a backlog stands, to be compared with where it stood.

    Attributes:
        number: Its number in the file; 0: there is no record of it.
        owner: Who had it last; without a record, who has looked.
        claims: How often somebody has become its owner.
    """

    number: int
    owner: str | None
    claims: int


class Namesake(NamedTuple):
    """A backlog of the same conversation, under another account.

    Attributes:
        number: Its number in the file.
        address: Whose it is.
        items: How many items wait.
    """

    number: int
    address: Address
    items: int


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The backlog of one conversation, as recorded.

    Attributes:
        rows: Oldest first.
        doubt: What was noted about requests that may still be applied, or None.
        paused: Why the backlog is not sent, or None.
    """

    rows: tuple[Row, ...]
    doubt: bytes | None
    paused: str | None

    def refused(self, read: Callable[[bytes], bytes | None]) -> bool:
        """Whether the batch that was sent last is certainly not on the server.

        A listing that is to tell what became of a request without an answer may be
        refused, too. Such requests are noted with the doubt, which `read` decrypts: where it
        cannot, nothing is certain.
        """
        status = re.search(r", status (\d+)", self.paused or "")
        if status is None or not 400 <= int(status[1]) < 500 or int(status[1]) == 408:
            return False
        if self.doubt is None:
            return True
        doubt = read(self.doubt)
        return doubt is not None and not json.loads(doubt).get("sends")


@dataclass(frozen=True, slots=True)
class WaitingItem:
    """An item that waits in an outbox.

    Attributes:
        seq: Its place in the order of acceptance, of all conversations.
        data: The item as UTF-8 JSON, byte for byte as it is sent; None: it is encrypted, and
            the key is not there. No `repr` shows it.
        size: Bytes that it takes where it is recorded.
        accepted_at: When it was accepted, seconds since the epoch.
        sealed: Whether it belongs to a batch that was sent, or may have been.
        refused: Whether that batch was refused for certain, and is not on the server.
    """

    seq: int
    data: bytes | None = field(repr=False)
    size: int
    accepted_at: float
    sealed: bool
    refused: bool

    @property
    def item(self) -> dict[str, Any] | None:
        """The item, as `add_items` was given it; another copy each time. None as in `data`."""
        found: dict[str, Any] | None = None if self.data is None else json.loads(self.data)
        return found


class StoredItem(NamedTuple):
    """One item of a conversation's last known window: its id, and its JSON as listed."""

    id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """The newest part of a conversation, as last known.

    Attributes:
        items: Oldest first.
        complete: Whether they reach the conversation's beginning.
        unverified: How many of the newest ones no listing has shown yet.
    """

    items: tuple[StoredItem, ...]
    complete: bool
    unverified: int


class LeftConversation(NamedTuple):
    """What an outbox still holds of one conversation.

    Attributes:
        conversation_id: The conversation's id, or its local name.
        items: How many items wait.
        reason: Why they were not sent, in words.
    """

    conversation_id: str
    items: int
    reason: str


@dataclass(frozen=True, slots=True)
class Left:
    """What an outbox still holds after it was closed. False, if that is nothing.

    Attributes:
        conversations: The conversations of which items wait.
    """

    conversations: tuple[LeftConversation, ...]

    @property
    def items(self) -> int:
        """How many items wait, of all conversations."""
        return sum(left.items for left in self.conversations)

    def __bool__(self) -> bool:
        return bool(self.conversations)


@dataclass(frozen=True, slots=True)
class BacklogSummary:
    """One backlog, in short.

    Attributes:
        number: Its number in the file, which no other one ever gets.
        address: Which conversation it is for, and whose it is; no key and no password.
        items: How many items wait.
        size: Bytes that they take where they are recorded: of their JSON, or encrypted.
        sealed: How many of them belong to a batch that may have been sent.
        oldest: When the oldest was accepted, seconds since the epoch, or None.
        paused: Why it is not sent, or None.
        owned: Whether a living process sends it at the moment.
        window: Bytes that its stored window takes.
    """

    number: int
    address: Address
    items: int
    size: int
    sealed: int
    oldest: float | None
    paused: str | None
    owned: bool
    window: int

    @property
    def conversation_id(self) -> str:
        """The conversation's id; its local name, until the server has made it."""
        return self.address.conversation
