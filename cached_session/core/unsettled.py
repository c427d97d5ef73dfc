"""Sends whose outcome is open, and what a listing says about them.

The server may apply a request after the client gave up on it. Each send that
got no answer may therefore still put its items on the server, once, until it
can no longer be alive. This module keeps the account: which items were seen
and belong to somebody, which sends may still come, and which items of a
listing are a copy that nobody wanted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cached_session.core.items import Held, Outgoing, decode, unhold
from cached_session.core.matching import longest_run

# How many ids before the first open send are remembered as its anchor. One is
# enough until another writer deletes it.
ANCHORS = 32

# How many ids behind the anchor are remembered at most before it is moved on.
CROWD = 100

# Stands among the ids of items that may be removed for the conversation as a
# whole. No item has an empty id.
_CONVERSATION = ""

# Kept as it was sent: equal attempts share one copy, and it is small.
Sent: TypeAlias = tuple[Outgoing, ...]
_Strangers: TypeAlias = list[Mapping[str, Any] | None]


@dataclass(slots=True, eq=False)
class _Send:
    items: Sent
    expires: float


class Unsettled:
    """The open sends of one conversation.

    The rule that everything here follows: what the first listing after a send
    shows is the truth and stays. A copy that turns up later is removed, since
    somebody has been told that it is not there.
    """

    def __init__(self) -> None:
        self._sends: list[_Send] = []
        self._removals: dict[str, float] = {}
        self._undecided: Sent = ()
        self._known: set[str] = set()
        self._behind: list[str] = []
        self._anchors: tuple[str, ...] = ()
        self._from_start = False
        self.extra: list[str] = []
        """Ids of late copies that are still to be deleted, in order."""

    @property
    def active(self) -> bool:
        """Whether a listing must be made before the local copy can be trusted."""
        return bool(self._sends or self._removals or self.extra)

    def expired(self, now: float) -> bool:
        """Whether no open request can be alive any more, and no late copy waits to be deleted."""
        expiries = [*(send.expires for send in self._sends), *self._removals.values()]
        return not self.extra and all(expires <= now for expires in expiries)

    @property
    def undecided(self) -> bool:
        """Whether a send waits for the listing that decides what landed."""
        return bool(self._undecided)

    @property
    def anchors(self) -> tuple[str, ...]:
        """Ids that stood before the first open request, newest first; () if none is open."""
        return self._anchors if self.active else ()

    def begin(self, items: Sequence[Held], *, complete: bool) -> None:
        """Remembers what stands before a request that may stay without an answer.

        Args:
            items: The window before the request, oldest first.
            complete: Whether it reaches the beginning.
        """
        if self.active:
            return
        self._known = {item.id for item in items}
        self._behind = []
        self._anchors = tuple(item.id for item in reversed(items[-ANCHORS:]))
        self._from_start = complete

    def sent(self, items: Sent, *, expires: float) -> None:
        """Notes a send without an answer; the next listing decides about it."""
        self._sends.append(_Send(items, expires))
        self._undecided = items

    def reopen(self, items: Sent) -> None:
        """Asks the next listing again how much of `items` landed, after a sign that some did."""
        if self.active:
            self._undecided = items

    def removing(self, item_id: str, *, expires: float) -> None:
        """Notes a delete without an answer that was given up on."""
        self._removals[item_id] = expires

    def clearing(self, *, expires: float) -> None:
        """Notes a delete of the conversation without an answer that was given up on."""
        self._removals[_CONVERSATION] = expires

    @property
    def may_be_cleared(self) -> bool:
        """Whether such a delete may have been applied, or still be."""
        return _CONVERSATION in self._removals

    @property
    def crowded(self) -> bool:
        """Whether so much is known to stand behind the anchor that a new listing is due."""
        return self.active and len(self._behind) > CROWD

    def dump(self, items: Sequence[Held], *, complete: bool, sending: bool) -> bytes:
        """What another process needs to go on from here.

        Args:
            items: The window before the sealed batch, oldest first.
            complete: Whether it reaches the beginning.
            sending: Whether that batch is sent next. Whoever takes over has to
                assume that it was; otherwise all its sends are noted here.
        """
        if not self.active:
            noted: dict[str, Any] = {
                "anchors": [item.id for item in reversed(items[-ANCHORS:])],
                # Of a longer window not all that stands there is noted.
                "from_start": complete and len(items) <= ANCHORS,
            }
        else:
            whole = self._from_start and len(self._known) <= CROWD
            noted = {
                "anchors": list(self._anchors),
                "from_start": whole,
                "known": sorted(self._known) if whole else self._behind,
                "sends": [[item.decode() for item in send.items] for send in self._sends],
                "extra": self.extra,
            }
        noted["sending"] = sending
        return json.dumps(noted, separators=(",", ":")).encode()

    def restore(self, noted: bytes | None, sealed: Sent, *, expires: float) -> None:
        """Takes over from a process that ended.

        Args:
            noted: Its last `dump`, or None.
            sealed: The batch that it may have sent; () if there is none.
            expires: When its requests can no longer be alive. When it sent them
                is not known: no clock that a machine's restart or its owner
                may change has a say in it.
        """
        if self.active or noted is None:
            return
        state: dict[str, Any] = json.loads(noted)
        self._anchors = tuple(state["anchors"])
        self._behind = list(state.get("known", ()))
        self._known = {*self._anchors, *self._behind}
        self._from_start = state["from_start"]
        self.extra = list(state.get("extra", ()))
        for send in state.get("sends", ()):
            self._sends.append(_Send(tuple(item.encode() for item in send), expires))
        if sealed and state.get("sending", True):
            self.sent(sealed, expires=expires)
        elif any(send.items == sealed for send in self._sends):
            # Not once more: read in turn by several processes it would grow without end.
            self._undecided = sealed

    def acknowledged(self, ids: Iterable[str]) -> None:
        """Notes items that an answer has shown: they are wanted."""
        if self.active:
            fresh = list(ids)
            self._known.update(fresh)
            self._behind += fresh

    def decided_lost(self) -> None:
        """Drops the question what landed: the conversation is not to be found."""
        self._undecided = ()

    def settle(self, items: Sequence[Held], *, reached_start: bool, listed_at: float) -> int | None:
        """Compares a new listing with the open requests.

        Args:
            items: The listing's items, oldest first, at least back to the anchor.
            reached_start: Whether they reach the conversation's beginning.
            listed_at: When the listing was asked for, seconds, on the clock of
                `expires`.

        Returns:
            How many items of the undecided send landed, from the first on; 0
            if none is undecided; None if this listing cannot tell.
        """
        behind = self._behind_anchor(items, reached_start)
        landed: int | None = None if self._undecided else 0
        if behind is not None:
            strangers: _Strangers = [
                None if item.id in self._known else unhold(item) for item in behind
            ]
            landed = self._attribute(behind, strangers)
        self._undecided = ()
        self._sends = [send for send in self._sends if send.expires > listed_at]
        self._removals = {
            item_id: expires for item_id, expires in self._removals.items() if expires > listed_at
        }
        self._anchor_behind(items, reached_start)
        return landed

    def _anchor_behind(self, items: Sequence[Held], reached_start: bool) -> None:
        # All that was listed is known now, and whatever comes late comes
        # behind it; but an item that may still be removed must stay in sight.
        # A late copy is one: whoever takes over may find that it is gone already.
        self._known.update(item.id for item in items)
        passing = {*self._removals, *self.extra}
        end = next((place for place, item in enumerate(items) if item.id in passing), len(items))
        if end or reached_start:
            # The older anchors stay: the newest items may yet be popped.
            newest = (item.id for item in reversed(items[:end][-ANCHORS:]))
            self._anchors = tuple(dict.fromkeys((*newest, *self._anchors)))[:ANCHORS]
            self._behind = [item.id for item in items[end:]]
            self._from_start = reached_start

    def _behind_anchor(self, items: Sequence[Held], reached_start: bool) -> Sequence[Held] | None:
        """The items behind the anchor, or None where that cannot be told."""
        anchors = set(self._anchors)
        for position in range(len(items) - 1, -1, -1):
            if items[position].id in anchors:
                return items[position + 1 :]
        # Every anchor is gone. Old items must not be taken for late copies:
        # only if all that stood there before is known can the rest be told.
        return items if reached_start and self._from_start else None

    def _attribute(self, behind: Sequence[Held], strangers: _Strangers) -> int:
        """Says of every new item which send it came from; returns how much landed.

        A send may have landed whole or, on some servers, in part: its first
        items. The longest run first, since a short one may be a piece of a
        long one. Where two are equally long, the undecided send is the one
        that is waited for.

        Another writer's items that equal an open send are taken for a copy of
        ours. Nothing on the server tells them apart.
        """
        landed = 0
        wanted = tuple(map(decode, self._undecided))
        sends = [(send, tuple(map(decode, send.items))) for send in self._sends]
        while any(item is not None for item in strangers):
            start, count, late = 0, 0, None
            if wanted and not landed:
                start, count = longest_run(wanted, len(strangers), strangers.__getitem__)
            for send, items in sends:
                found, length = longest_run(items, len(strangers), strangers.__getitem__)
                # Only the batch in question may stand there in part: a server
                # that stores parts does so at once. Later, the beginning of a
                # batch is more likely another writer's message than ours.
                whole = length == len(items)
                if length > count and (whole or items == wanted):
                    start, count, late = found, length, send
            if not count:
                break
            if late is None:
                landed = count
                # Which of several equal sends came through cannot be told and
                # does not matter: one of them is spent.
                late = next((send for send in self._sends if send.items == self._undecided), None)
            else:
                self.extra.extend(item.id for item in behind[start : start + count])
            if late is not None:
                self._sends.remove(late)
                sends = [(send, items) for send, items in sends if send is not late]
            strangers[start : start + count] = [None] * count
        return landed
