"""Which local copies are kept, and that there is one of each."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from cachetools import LRUCache, TTLCache

from cached_session.conversation.conversation import Conversation, Key
from cached_session.events import CacheStats, CopyEvicted, Observer, Observers
from cached_session.forks import in_child, keep
from cached_session.server.connections import Account
from cached_session.session.arguments import check_id, check_observer

# What a copy costs beside its items: its own objects and its places in the
# cache. Measured (`python -m benchmarks memory`). Keeps a bound on many small
# conversations honest.
OVERHEAD = 5 * 1024

# Of how many conversations a cache remembers that they were thrown away: about 400 bytes each.
MOST_THROWN_AWAY = 10_000


class ConversationCache:
    """The local copies of many conversations, within a bound of memory.

    When the bound is reached, the copies used least recently are dropped. A
    dropped copy costs a request at its next use, never an item. A copy that is
    being worked on stays until the work is done.

    Safe to use from several threads and event loops.

    Attributes:
        observers: Who is told of what happens to all sessions that use it; see `observe`.

    Args:
        max_bytes: Memory for all copies together, in bytes.
        ttl: Seconds after its last use that a copy is kept at most; None:
            until the bound is reached.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is negative, or `ttl` is not above 0.
    """

    def __init__(self, max_bytes: int = 64 * 1024 * 1024, ttl: float | None = None) -> None:
        if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
            raise TypeError("max_bytes must be an int, in bytes")
        if max_bytes < 0:
            raise ValueError("max_bytes must not be negative")
        if ttl is not None and (not isinstance(ttl, int | float) or isinstance(ttl, bool)):
            raise TypeError("ttl must be a number of seconds, or None")
        if ttl is not None and not 0 < ttl <= sys.float_info.max:
            raise ValueError("ttl must be a finite number of seconds above 0, or None")
        self._max_bytes, self._ttl = max_bytes, ttl
        self.observers: Observers = Observers()
        self._begin()
        in_child(self, ConversationCache._begin_anew)

    def _begin(self) -> None:
        max_bytes, ttl = self._max_bytes, self._ttl
        self._lock = threading.RLock()
        self._hits = self._misses = self._evictions = 0
        # The observers are told of these once the lock is free: they may call the cache.
        self._evicted: list[CopyEvicted] = []
        self._copies: _Least | _Timed = (
            _Least(max_bytes, self._evicted)
            if ttl is None
            else _Timed(max_bytes, ttl, self._evicted)
        )
        # A copy that a session holds stays the only one of its conversation
        # even when its items were dropped: two would have two orders of writes.
        self._live: weakref.WeakValueDictionary[Key, Conversation] = weakref.WeakValueDictionary()
        # A copy with requests that may still be applied must not be forgotten,
        # or nobody would know the late copy when it comes.
        self._doubtful: dict[Key, Conversation] = {}
        # A copy that was thrown away may be forgotten, but not that the server is to be asked for
        # the next one, which an outbox would fill. By id, with the accounts that have asked since.
        self._thrown_away: LRUCache[str, set[Account]] = LRUCache(MOST_THROWN_AWAY)

    def _begin_anew(self) -> None:
        """In a forked child: the copies are the parent's, with their turns and their writes."""
        keep(self._copies, [*self._live.values()], self._doubtful)
        self._begin()

    @property
    def bytes(self) -> int:
        """Bytes of memory that the kept copies take, as counted against `max_bytes`."""
        with self._lock:
            return int(self._copies.currsize)

    @property
    def stats(self) -> CacheStats:
        """What all sessions that use the cache did in this process so far, and what is kept."""
        with self._lock:
            return CacheStats(
                self._hits,
                self._misses,
                self._evictions,
                len(self._copies),
                int(self._copies.currsize),
            )

    def count(self, *, hit: bool) -> None:
        """Counts a read of a session."""
        with self._lock:
            if hit:
                self._hits += 1
            else:
                self._misses += 1

    def invalidate(self, conversation_id: str) -> int:
        """Drops the copies of a conversation, of every account; the next read asks the server.

        Also by a session that is made later, and where there is no copy, but an outbox could
        answer. This is remembered of 10,000 conversations, those that the cache has met last; of
        one more an outbox may answer when all its sessions are closed.

        Of this cache alone: another cache, and another process, has copies of its own. No read
        that begins after this is answered from what was known before, whatever its
        `max_staleness`. One that is under way may be, and what it has fetched is not kept. A
        write that is under way goes on; the copy is dropped behind it. What waits in an outbox
        stays, is sent, and is shown behind what the server says. From any thread; waits for
        nobody.

        Args:
            conversation_id: The conversation's id. Of one that has only a local name there is no
                copy to drop: nobody but the outbox knows it.

        Returns:
            How many copies there were: one for each account.

        Raises:
            TypeError: `conversation_id` is no str.
            ValueError: `conversation_id` cannot be one.
        """
        check_id("conversation_id", conversation_id)
        with self._lock:
            self._thrown_away[conversation_id] = set()
        found = self.conversations()
        return self._invalidate(one for one in found if one.conversation_id == conversation_id)

    def clear(self) -> int:
        """Drops all copies, as `invalidate` does that of one conversation.

        Of a conversation that has no copy here at that moment an outbox may still answer.

        Returns:
            How many there were.
        """
        return self._invalidate(self.conversations())

    def _invalidate(self, conversations: Iterable[Conversation]) -> int:
        dropped = 0
        for one in conversations:
            dropped += one.holds
            one.order.invalidate()
            with self._lock:
                # A copy that is being worked on is measured when the work is done.
                if not one.holds:
                    self._copies.pop(one.key, None)
                self._note(one)
        return dropped

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Has an observer told of the events of all sessions that use the cache, and of its own.

        From now on, and of sessions that are made later, too.

        Args:
            observer: As the argument of `CachedSession`. One that is given twice, or to a session,
                too, is told of each event once.

        Returns:
            What ends it when it is called.

        Raises:
            TypeError: `observer` is not callable, or a coroutine function.
        """
        check_observer(observer)
        return self.observers.add(observer)

    def __len__(self) -> int:
        with self._lock:
            return len(self._copies)

    def __repr__(self) -> str:
        with self._lock:
            return (
                f"ConversationCache({len(self._copies)} conversations, "
                f"{int(self._copies.currsize)} of {int(self._copies.maxsize)} bytes)"
            )

    def conversation(
        self, account: Account, conversation_id: str, *, client: Account | None = None
    ) -> Conversation:
        """The one local copy of a conversation; made if there is none.

        Args:
            account: Whose it is.
            conversation_id: The conversation.
            client: What the client by itself speaks for, where that is another name of
                `account`: the copy is then found by both.
        """
        keys = [(name, conversation_id) for name in (account, client or account)]
        with self._lock:
            found = self._live.get(keys[0]) or self._live.get(keys[1])
            if found is None:
                found = Conversation(conversation_id, keys[0], self._keep, self._rename)
                self._remind(found)
            for key in keys:
                other = self._live.get(key)
                if other is not None and other is not found:
                    # It was not known that these are one account.
                    other.order.give_up(found.order)
                    self._copies.pop(other.key, None)
                self._live[key] = found
            return found

    def conversations(self) -> list[Conversation]:
        """The copies that are kept or in use, at this moment."""
        with self._lock:
            # A copy may be there by two names.
            return [*{id(one): one for one in self._live.values()}.values()]

    def touch(self, conversation: Conversation) -> None:
        """Notes that a copy is about to be used; one whose time is over is dropped."""
        with self._lock:
            self._copies.touch(conversation)
        if self._evicted:
            self._tell()

    def _tell(self) -> None:
        """Tells observers what was evicted. Without the lock."""
        while True:
            with self._lock:
                if not self._evicted:
                    return
                event = self._evicted.pop(0)
                self._evictions += 1
            self.observers.tell(event)

    def _keep(self, conversation: Conversation) -> None:
        """Takes a copy in, or measures it anew. Its caller has the copy's turn."""
        self._measure(conversation)
        if self._evicted:
            self._tell()

    def _measure(self, conversation: Conversation) -> None:
        key = conversation.key
        with self._lock:
            if conversation.replaced:
                return
            self._doubt(key, conversation)
            self._note(conversation)
            # A value is measured when it is set, and an old one is kept when
            # the new one is too large: take it out first.
            self._copies.pop(key, None)
            if not conversation.holds:
                return
            if _size(conversation) > self._copies.maxsize:
                self._evicted.append(_eviction(conversation, "size"))
                conversation.drop()
            else:
                self._copies[key] = conversation

    def _rename(self, conversation: Conversation, conversation_id: str) -> None:
        """Knows a copy by its conversation's own id from now on; one that is replaced, no more."""
        with self._lock:
            for copies in (self._copies, self._doubtful):
                copies.pop(conversation.key, None)
            for key in [key for key, live in self._live.items() if live is conversation]:
                del self._live[key]
                if conversation.replaced:
                    continue
                other = self._live.get((key[0], conversation_id))
                if other is not None:
                    other.order.give_up(conversation.order)
                    self._copies.pop(other.key, None)
                self._live[key[0], conversation_id] = conversation
            conversation.key = (conversation.key[0], conversation_id)
            self._remind(conversation)
            self._measure(conversation)
        if self._evicted:
            self._tell()

    def _note(self, conversation: Conversation) -> None:
        """Notes whether the server is still to be asked, for a copy that is made after this one."""
        account, name = conversation.key
        if conversation.to_ask:
            self._thrown_away.setdefault(name, set()).discard(account)
        elif name in self._thrown_away:
            self._thrown_away[name].add(account)

    def _remind(self, conversation: Conversation) -> None:
        """Has the server asked for a copy that is new by its name, if that is still to be done."""
        account, name = conversation.key
        if account not in self._thrown_away.get(name, {account}):
            conversation.order.invalidate()

    def _doubt(self, key: Key, conversation: Conversation) -> None:
        if conversation.ledger.watch.active:
            self._doubtful[key] = conversation
        else:
            self._doubtful.pop(key, None)
        if self._doubtful:
            now = _now()
            for old in [
                old for old, kept in self._doubtful.items() if kept.ledger.watch.expired(now)
            ]:
                del self._doubtful[old]


def _now() -> float:
    """The clock on which requests expire: the running loop's."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # a coroutine that is closed after its loop
        return time.monotonic()


def _size(conversation: Conversation) -> int:
    return conversation.size + OVERHEAD


def _eviction(conversation: Conversation, reason: str) -> CopyEvicted:
    held = conversation.held()
    return CopyEvicted(conversation.conversation_id, reason, held.items, held.bytes)


def _drop(conversation: Conversation, reason: str, evicted: list[CopyEvicted]) -> None:
    evicted.append(_eviction(conversation, reason))
    # A copy that is being worked on is taken in again when the work is done.
    conversation.order.turns.when_idle(conversation.drop)


class _Least(LRUCache[Key, Conversation]):
    """Drops what was used least recently."""

    def __init__(self, maxsize: int, evicted: list[CopyEvicted]) -> None:
        super().__init__(maxsize, _size)
        self._evicted = evicted

    def popitem(self) -> tuple[Key, Conversation]:
        key, conversation = super().popitem()
        _drop(conversation, "size", self._evicted)
        return key, conversation

    def touch(self, conversation: Conversation) -> None:
        """Notes that a copy is about to be used, if it is here."""
        self.get(conversation.key)


class _Timed(TTLCache[Key, Conversation]):
    """Drops what was not used for a while, too."""

    def __init__(self, maxsize: int, ttl: float, evicted: list[CopyEvicted]) -> None:
        super().__init__(maxsize, ttl, getsizeof=_size)
        self._evicted = evicted

    def popitem(self) -> tuple[Key, Conversation]:
        key, conversation = super().popitem()
        _drop(conversation, "size", self._evicted)
        return key, conversation

    def expire(self, time: float | None = None) -> Any:
        expired = list(super().expire(time) or ())
        for _, conversation in expired:
            _drop(conversation, "age", self._evicted)
        return expired

    def touch(self, conversation: Conversation) -> None:
        """Drops what is too old, and notes that a copy is about to be used, if it is here."""
        self.expire()
        # A copy that a write has just made too large is dealt with when the write has ended.
        if conversation.key in self and _size(conversation) <= self.maxsize:
            self[conversation.key] = conversation


PROCESS_CACHE = ConversationCache()
