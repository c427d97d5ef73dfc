"""The conversations and their items: pure, synchronous, and the same for the same seed.

The store knows neither HTTP nor asyncio, and it asks no clock: ids and times come from callables
that it was given. Items live in one pool by id, and a conversation is a sequence of ids, because
the service shares an item that is appended elsewhere by its id (recorded).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .items import Draft
from .snapshot import VERSION, Snapshot

__all__ = [
    "Conversation",
    "ConversationStore",
    "ItemAlreadyInConversation",
    "Page",
    "UnknownConversation",
    "UnknownItem",
    "random_ids",
    "seeded_ids",
]

Item = dict[str, Any]


class UnknownConversation(LookupError):
    """No conversation has this id, or the one that had it was deleted."""


class UnknownItem(LookupError):
    """No item has this id in the place where it was looked for."""


class ItemAlreadyInConversation(ValueError):
    """An append names an item that the conversation already holds."""


@dataclass(slots=True)
class Conversation:
    """One conversation.

    Attributes:
        id: Its id.
        created_at: When it was made, in whole seconds since 1970.
        metadata: Pairs that the client attached.
        entries: Ids of its items, oldest first; an id may stand more than once.
    """

    id: str
    created_at: int
    metadata: dict[str, str]
    entries: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing.

    Attributes:
        items: Stored items, not to be changed.
        has_more: Whether the listing goes on after the last of them.
    """

    items: tuple[Item, ...]
    has_more: bool


def seeded_ids(seed: int) -> Callable[[str], str]:
    """Returns a source of ids that is the same for the same seed."""
    return _ids(random.Random(seed))


def random_ids() -> Callable[[str], str]:
    """Returns a source of ids that no other run repeats."""
    return _ids(random.SystemRandom())


def _ids(source: random.Random) -> Callable[[str], str]:
    # 24 bytes in hexadecimal after the prefix, as in recorded ids.
    return lambda prefix: f"{prefix}_{source.getrandbits(192):048x}"


class ConversationStore:
    """Conversations, their items, and the rules that hold between them."""

    def __init__(
        self,
        *,
        new_id: Callable[[str], str] | None = None,
        now: Callable[[], int] | None = None,
    ) -> None:
        """Creates an empty store.

        Args:
            new_id: Returns an unused id for a prefix; by default a generator with seed 0.
            now: Returns the time in whole seconds since 1970; by default a counter from 1.
        """
        self._new_id = new_id or seeded_ids(0)
        self._now = now or itertools.count(1).__next__
        self._conversations: dict[str, Conversation] = {}
        self._pool: dict[str, Item] = {}

    def ids(self) -> tuple[str, ...]:
        """Returns the ids of the conversations that are not deleted, oldest first."""
        return tuple(self._conversations)

    def snapshot(self) -> dict[str, Any]:
        """Returns all that is stored, as JSON has it; the items are shared with the store."""
        listed = {entry for one in self._conversations.values() for entry in one.entries}
        return {
            "version": VERSION,
            "conversations": [
                {
                    "id": one.id,
                    "created_at": one.created_at,
                    "metadata": one.metadata,
                    "items": [self._pool[entry] for entry in one.entries],
                }
                for one in self._conversations.values()
            ],
            "items": [item for name, item in self._pool.items() if name not in listed],
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Puts the conversations and items of a snapshot in the place of those that are stored."""
        self._conversations, self._pool = {}, {}
        self._pool |= self._resolve(snapshot.loose)[1]
        # A new id must not be one that a later conversation brings along.
        taken = {kept.id for kept in snapshot.conversations}
        for kept in snapshot.conversations:
            entries, fresh = self._resolve(kept.drafts)
            self._pool |= fresh
            identifier = kept.id or self._unused("conv", taken)
            created = self._now() if kept.created_at is None else kept.created_at
            self._conversations[identifier] = Conversation(
                identifier, created, dict(kept.metadata), entries
            )

    def create(self, drafts: Sequence[Draft], metadata: dict[str, str]) -> Conversation:
        """Makes a conversation.

        Raises:
            UnknownItem: A draft refers to an item that is not stored. Nothing was made.
        """
        entries, fresh = self._resolve(drafts)
        conversation = Conversation(self._unused("conv"), self._now(), dict(metadata), entries)
        self._pool |= fresh
        self._conversations[conversation.id] = conversation
        return conversation

    def conversation(self, conversation_id: str) -> Conversation:
        """Returns a conversation.

        Raises:
            UnknownConversation: There is none with this id.
        """
        try:
            return self._conversations[conversation_id]
        except KeyError:
            raise UnknownConversation(conversation_id) from None

    def set_metadata(self, conversation_id: str, metadata: dict[str, str]) -> Conversation:
        """Replaces the metadata of a conversation.

        Raises:
            UnknownConversation: There is none with this id.
        """
        conversation = self.conversation(conversation_id)
        conversation.metadata = dict(metadata)
        return conversation

    def delete(self, conversation_id: str) -> None:
        """Deletes a conversation. Its items stay in the pool (spec).

        Raises:
            UnknownConversation: There is none with this id.
        """
        self.conversation(conversation_id)
        del self._conversations[conversation_id]

    def append(self, conversation_id: str, drafts: Sequence[Draft]) -> tuple[Item, ...]:
        """Appends items in order, all or none.

        Returns:
            The items as stored. For an id that is stored already it is the stored one, whatever
            the draft says (recorded).

        Raises:
            UnknownConversation: There is no such conversation.
            UnknownItem: A draft refers to an item that is not stored.
            ItemAlreadyInConversation: A draft has the id of an item of this conversation.
        """
        conversation = self.conversation(conversation_id)
        entries, fresh = self._resolve(drafts)
        held = set(conversation.entries)
        for entry in entries:
            if entry in held:
                raise ItemAlreadyInConversation(entry)
        self._pool |= fresh
        conversation.entries.extend(entries)
        return tuple(self._pool[entry] for entry in entries)

    def page(
        self, conversation_id: str, *, limit: int, descending: bool, after: str | None
    ) -> Page:
        """Lists a part of a conversation.

        Args:
            conversation_id: The conversation.
            limit: How many items at most.
            descending: Whether the newest comes first.
            after: Id of the item after which the part begins, or None for the beginning.

        Raises:
            UnknownConversation: There is no such conversation.
            UnknownItem: ``after`` is not in the conversation.
        """
        entries = self.conversation(conversation_id).entries
        size = len(entries)
        start = 0
        if after is not None:
            try:
                # Where an id stands more than once, the last place in listing order counts, so
                # that paging always gets ahead. What the service does is not known.
                if descending:
                    start = size - entries.index(after)
                else:
                    start = size - entries[::-1].index(after)
            except ValueError:
                raise UnknownItem(after) from None
        stop = min(start + limit, size)
        if descending:
            shown: Iterable[str] = reversed(entries[size - stop : size - start])
        else:
            shown = entries[start:stop]
        return Page(tuple(self._pool[entry] for entry in shown), stop < size)

    def items(self, conversation_id: str) -> tuple[Item, ...]:
        """Returns every item of a conversation, oldest first.

        Raises:
            UnknownConversation: There is no such conversation.
        """
        entries = self.conversation(conversation_id).entries
        return tuple(self._pool[entry] for entry in list(entries))

    def item(self, conversation_id: str, item_id: str) -> Item:
        """Returns one item of a conversation.

        Raises:
            UnknownConversation: There is no such conversation.
            UnknownItem: The conversation does not hold it.
        """
        if item_id not in self.conversation(conversation_id).entries:
            raise UnknownItem(item_id)
        return self._pool[item_id]

    def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        """Takes an item out of a conversation, wherever it stands in it.

        Raises:
            UnknownConversation: There is no such conversation.
            UnknownItem: The conversation does not hold it.
        """
        conversation = self.conversation(conversation_id)
        if item_id not in conversation.entries:
            raise UnknownItem(item_id)
        conversation.entries = [entry for entry in conversation.entries if entry != item_id]
        return conversation

    def _unused(self, prefix: str, taken: Container[str | None] = ()) -> str:
        """Returns a new id. A seeded source may give one again that a snapshot has brought."""
        while True:
            found = self._new_id(prefix)
            if found not in self._conversations and found not in self._pool and found not in taken:
                return found

    def _resolve(self, drafts: Sequence[Draft]) -> tuple[list[str], dict[str, Item]]:
        """Returns the ids that drafts stand for and the items to add to the pool for them."""
        entries: list[str] = []
        fresh: dict[str, Item] = {}
        for draft in drafts:
            identifier = draft.id or self._unused(draft.prefix)
            if identifier not in self._pool and identifier not in fresh:
                if draft.content is None:
                    raise UnknownItem(identifier)
                fresh[identifier] = {"id": identifier, **draft.content}
            entries.append(identifier)
        return entries, fresh
