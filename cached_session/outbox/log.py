"""What an outbox records, behind its verbs: each is one transaction, on plain values.

Somebody else may use the same log. What was read holds as long as the epoch is
the same: it changes whenever somebody becomes the owner of a conversation, and
only the owner sends, and notes what is in doubt. Anybody may accept and
withdraw: rows that others have accepted since come with each answer.

Whoever writes another kind of outbox writes this: `memory.py` has it on lists,
`sqlite/log.py` on the tables of a file, with what it takes to share them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple, Protocol

from cached_session.core.items import Held
from cached_session.errors import Reopened
from cached_session.outbox.records import (
    Address,
    BacklogSummary,
    Mailbox,
    Mark,
    Namesake,
    Row,
    StoredItem,
    StoredWindow,
)


class Epoch(NamedTuple):
    """As of when a conversation was read.

    Attributes:
        opened: As what the log was opened: another one each time.
        claims: The number of the conversation's record, and how often somebody had become its
            owner; the number is 0 or less if nobody ever had; None: another process has it, and
            goes on changing it.
    """

    opened: str
    claims: tuple[int, int] | None


class Found(NamedTuple):
    """What was read of a conversation.

    Attributes:
        address: Where it is.
        epoch: As of when.
        before: Where it stood before it was claimed.
        held: Whether it was claimed, and others are kept from sending.
        mine: Whether nobody else looks after it.
        anew: Whether somebody else has had it, so that all of it was read; or nothing but rows
            that were accepted since, and what follows is not told.
        rows: What waits.
        doubt: What is noted about requests that may still be applied, or None.
        paused: Why it is not sent, or None.
        window: What is kept of the conversation, or None.
        newest: The newest item of that.
        exists: Whether there is a record of it.
        namesakes: Backlogs of the conversation that another account has.
        version: Another one whenever rows, the window or the owner have changed; None: always.
        there: The places of all rows, where `rows` are only those that were accepted since; None:
            nobody else takes any back.
        continued: Whether `window` has only what was added to the one that was known.
        doubtful: Whether the log may have forgotten what was noted last: all that waits may be on
            the server, and the window may lack something.
    """

    address: Address
    epoch: Epoch
    before: Mark
    held: bool
    mine: bool
    anew: bool
    rows: tuple[Row, ...]
    doubt: bytes | None = None
    paused: str | None = None
    window: StoredWindow | None = None
    newest: tuple[int, str] | None = None
    exists: bool = True
    namesakes: tuple[Namesake, ...] = ()
    version: Hashable = None
    there: tuple[int, ...] | None = None
    continued: bool = False
    doubtful: bool = False


class Accepted(NamedTuple):
    """What was recorded.

    Attributes:
        rows: The new rows.
        others: Rows before them that were not taken in when this began: those of other processes,
            and of an append in the same commit.
    """

    rows: tuple[Row, ...]
    others: tuple[Row, ...]


class Kept(NamedTuple):
    """What is to be kept of a conversation for the next process.

    Attributes:
        items: The newest items, oldest first; None: what is kept is to be forgotten.
        complete: Whether they reach the conversation's beginning.
        unverified: How many of the newest ones no listing has shown yet.
        new: From which on they are not kept yet, if the newest kept one is still `newest`; None:
            all of them are to be written.
        newest: As it was when this process read or wrote it.
        listed: Whether the server was asked for them just now.
        stored: Makes of an item what is recorded; None only where there are none.
    """

    items: Sequence[Held] | None
    complete: bool = False
    unverified: int = 0
    new: int | None = None
    newest: tuple[int, str] | None = None
    listed: bool = False
    stored: Callable[[Held], StoredItem] | None = None


class Written(NamedTuple):
    """What was kept: the newest item of it, by which it is told from any other writing of it."""

    newest: tuple[int, str] | None


class Sealed(NamedTuple):
    """What became of a batch that was to be sealed.

    Attributes:
        epoch: From now on.
        rows: The batch; none: it was taken back.
        newer: Rows of other processes.
        written: What was kept, or None.
    """

    epoch: Epoch
    rows: tuple[Row, ...]
    newer: tuple[Row, ...]
    written: Written | None


class Noted(NamedTuple):
    """What was noted.

    Attributes:
        newer: Rows of other processes.
        doubt: Whether the doubt was written: it is this process's to write.
        written: What was kept, or None.
        left: Where it stands, where it was released.
        epoch: From now on; None: somebody else has had it since it was read.
    """

    newer: tuple[Row, ...]
    doubt: bool
    written: Written | None
    left: Mark | None
    epoch: Epoch | None


class Withdrawn(NamedTuple):
    """What was taken back.

    Attributes:
        row: The newest item; None: there is none, or it may have been sent, or is not known here.
        newer: Rows of other processes that were not known here, where there were any: nothing was
            taken back then. Maybe there are none any more. None: there were none.
    """

    row: Row | None
    newer: tuple[Row, ...] | None


class Look(NamedTuple):
    """How a conversation stands.

    Attributes:
        elsewhere: Whether another living process sends it.
        waits: Whether anything waits.
        paused: Why it is not sent, or None.
        doubted: Whether something is noted to be in doubt.
    """

    elsewhere: bool
    waits: bool
    paused: str | None
    doubted: bool


class Ticket(NamedTuple):
    """A place in the line of those who want a conversation for a whole run.

    Attributes:
        number: Its number; those who came before have lower ones.
        opened: As what the log was opened when it was taken.
        first: Whether nobody living is before it: it is its turn.
    """

    number: int
    opened: str
    first: bool


class Orphan(NamedTuple):
    """What waits of a conversation, and nobody who lives has claimed it.

    Somebody may be about to: who has recorded it claims it a moment later, to send it.

    Attributes:
        address: Where it is.
        claims: How often somebody has become its owner.
        oldest: The place of its oldest item. With both the same a while later, nobody was.
    """

    address: Address
    claims: int
    oldest: int


class Orphans(NamedTuple):
    """What waits of an account, and nobody who lives has claimed it.

    Attributes:
        found: First what was made first.
        others: Whether more of the account waits, which somebody living has, or which was passed
            over: that may be left later.
    """

    found: tuple[Orphan, ...]
    others: bool


def had_by_others() -> Reopened:
    """What a verb raises where what is known counts no more; nothing is changed by it."""
    return Reopened("another process has had the conversation; nothing was recorded by this call")


class Log(Protocol):
    """The verbs. Each is called in a transaction of its own, and undone if it raises."""

    # What a conversation does

    def open(
        self, address: Address, epoch: Epoch | None, seen: int, *, claim: bool, first: bool
    ) -> Found:
        """Reads a conversation: all of it, where somebody else has had it since.

        Args:
            address: Where it is.
            epoch: As of when it was read here, or None.
            seen: The newest place that is known here.
            claim: Whether it is to be claimed; otherwise that is done where something is to be
                sent, and nobody else does.
            first: Whether it was never read here.
        """

    def validate(
        self,
        address: Address,
        epoch: Epoch,
        version: Hashable,
        seen: int,
        newest: tuple[int, str] | None,
    ) -> Found | None:
        """Says what has changed of a conversation; claims and writes nothing.

        All of it is of one moment: with a living owner, what has landed and is not noted is a row
        still, and not in the window. While the epoch is the same, nobody has changed the server:
        whoever does has claimed the conversation before.

        Args:
            address: Where it is.
            epoch: As of when it was read here.
            version: As it was then, or when it was last validated.
            seen: The newest place that is known here.
            newest: The newest item of the window that is known here, if all of that is.

        Returns:
            None: nothing has changed. Otherwise with the same epoch what was accepted since and
            what is there still, with another one all there is; with the window, in both cases.
        """

    def catch_up(self, address: Address, epoch: Epoch, seen: int) -> tuple[Row, ...]:
        """The rows that were accepted since.

        Raises:
            Reopened: The log was opened anew since, and nothing is changed; as from every verb
                but `open` that takes an epoch, where a log can be closed and opened.
        """

    def accept(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        items: Sequence[bytes],
        now: float,
        ticket: Ticket | None = None,
    ) -> Accepted:
        """Records items behind those that wait.

        Places are in the order of the commits, across all who share the log: one that became
        visible behind a higher one would be taken for known.

        Args:
            address: Where the conversation is.
            epoch: As of when it was read here.
            seen: The newest place that is known here.
            items: Each as UTF-8 JSON, or encrypted.
            now: Seconds since the epoch.
            ticket: The turn that they belong to, or None.

        Raises:
            TurnLost: That turn is over.
        """

    def seal(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        *,
        through: int,
        landed: int,
        doubt: bytes,
        kept: Kept | None,
    ) -> Sealed | Found | None:
        """Claims a conversation, and notes that the batch up to a place may be sent from now on.

        Args:
            address: Where it is.
            epoch: As of when it was read here.
            seen: The newest place that is known here.
            through: The place of the batch's last item.
            landed: The place up to which items are on the server.
            doubt: What is to be noted about this batch and others that may still be applied.
            kept: What is to be kept of the conversation, or None: it is kept already.

        Returns:
            What is sealed; or all there is, where somebody else has had it since, and nothing is
            sealed; or None: another process has it.
        """

    def note(
        self,
        address: Address,
        epoch: Epoch,
        seen: int,
        *,
        landed: int,
        doubt: bytes | None,
        undoubted: bool,
        kept: Kept | None,
        release: bool,
    ) -> Noted:
        """Puts down what has landed, and what is known.

        Args:
            address: Where it is.
            epoch: As of when it was read here. Where another process has had it since, what is
                noted there is newer than what is known here: rows and doubt stay as they are.
            seen: The newest place that is known here.
            landed: The place up to which items are on the server.
            doubt: What is noted about requests that may still be applied, or None.
            undoubted: Whether nothing is, where `doubt` is None; or else it stays as it is.
            kept: As in `seal`.
            release: Whether to let other processes send.

        Where rows have landed, and what is kept does not have them, it is forgotten: others read
        both together.
        """

    def withdraw(
        self, address: Address, epoch: Epoch, seen: int, ticket: Ticket | None = None
    ) -> Withdrawn:
        """Takes the newest item back, unless it may have been sent.

        Nor one that the caller has not seen: it is told of it instead. What it cannot read it
        could only record anew, behind what came meanwhile.

        Args:
            address: Where the conversation is.
            epoch: As of when it was read here.
            seen: The newest place that is known here.
            ticket: The turn that this belongs to, or None.

        Raises:
            TurnLost: The turn that this belongs to is over.
        """

    def drop(
        self,
        address: Address,
        epoch: Epoch,
        *,
        sealed: bool,
        landed: int,
        ticket: Ticket | None = None,
    ) -> tuple[int, ...]:
        """Takes back what was not sent; with `sealed` all, and what it was paused for.

        Raises:
            Reopened: Somebody else has had it since, and may be sending what is sealed.
            TurnLost: The turn that this belongs to is over.
        """

    def forget(self, address: Address, epoch: Epoch) -> None:
        """Forgets what is kept of a conversation that is gone."""

    def pause(self, address: Address, epoch: Epoch, reason: str) -> None:
        """Notes why nothing is sent until somebody decides.

        Raises:
            Reopened: Somebody else has had it since, and may have sent it.
        """

    def name(self, address: Address, epoch: Epoch, conversation: str) -> Address:
        """Gives a conversation its id that had only a local name, by which it is found, too.

        Returns:
            Where it is from now on. If the local name was made a conversation of before, that
            one's address.

        Raises:
            ValueError: `address` is not that of a local name.
        """

    def look(self, address: Address, epoch: Epoch) -> Look:
        """How a conversation stands, for those who wait for another process, or for a human."""

    def release(self, address: Address) -> None:
        """Lets other processes send, if this one has kept them from it."""

    # Runs that take turns

    def line_up(self, address: Address, ticket: Ticket | None) -> Ticket:
        """Takes a place in the line of those who want a conversation for a whole run.

        One that nobody living has any more is passed by.

        Args:
            address: Where the conversation is.
            ticket: The place that was taken before, or None.

        Returns:
            The place, and whether it is the first now. Another one, behind all others, where
            `ticket` counts no more.
        """

    def has_turn(self, ticket: Ticket) -> bool:
        """Whether a turn is still had."""

    def step_out(self, ticket: Ticket) -> None:
        """Gives a place in the line up, or the turn."""

    # What somebody does who looks after all of it

    def orphans(self, account: Address, beside: Collection[Address], limit: int) -> Orphans:
        """What waits of an account, is not paused, and nobody who lives has claimed.

        Who has come to one of them claims it by `open`, as for any other. The cost is that of what
        waits, whatever else is kept.

        Args:
            account: An address of the account; its conversation does not count.
            beside: What is passed over.
            limit: How many at most.
        """

    def summaries(self) -> list[BacklogSummary]:
        """All that holds items, a window or a doubt, or is paused, in the order of its making."""

    def mailbox(self, address: Address) -> Mailbox:
        """What waits for a conversation."""

    def resume(self, address: Address) -> None:
        """Notes that what waits may be sent again."""

    def discard(self, address: Address) -> int | None:
        """Removes what waits, and what it was paused for.

        Returns:
            How many items were removed; None: a living process sends them, and nothing is changed.
        """

    def move(self, address: Address, to: Address) -> Address:
        """Moves what waits to another account.

        What is kept of the conversation is forgotten: it shows what the first account could read.

        Returns:
            Where it is from now on.

        Raises:
            OutboxError: A living process has one of the two, or what is noted there could not be
                told from what is noted here any more. Nothing is changed.
        """
