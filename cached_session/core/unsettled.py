"""Sends whose outcome is open, and what a listing says about them.

The server may apply a request after the client gave up on it. Each send that
got no answer may therefore still put its items on the server, once, until it
can no longer be alive. This module keeps the account: which items were seen
and belong to somebody, which sends may still come, and which items of a
listing are a copy that nobody wanted.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from cached_session.core.items import Held, Outgoing, decode, unhold
from cached_session.core.matching import (
    VERBATIM,
    Match,
    Requests,
    Rewriting,
    Run,
    compare,
    explain,
    runs,
    shape,
)

# How many ids before the first open send are remembered as its anchor. One is
# enough until another writer deletes it.
ANCHORS = 32

# How many ids behind the anchor are remembered at most before it is moved on.
CROWD = 100

CONVERSATION = ""
"""Stands for the conversation as a whole among the ids of items that may be removed.

No item has an empty id.
"""

# Kept as it was sent: equal attempts share one copy, and it is small.
Sent: TypeAlias = tuple[Outgoing, ...]
_Strangers: TypeAlias = list[Mapping[str, Any] | None]


@dataclass(slots=True, eq=False)
class _Open:
    """A request without an answer.

    Attributes:
        expires: Until when it may still be applied.
        name: What it is known by, also to others. As there is one request at a time, the moment
            when it was given up on tells it from others.
    """

    expires: float
    name: str


@dataclass(slots=True, eq=False)
class _Send(_Open):
    """One that put these items on the server, or still may."""

    items: Sent


@dataclass(slots=True)
class _Shown:
    """How the server lists an item.

    Attributes:
        digests: Of the shapes in which it was listed.
        explained: Whether it is a message of texts alone, each as it was sent or rewritten in
            a known way.
    """

    digests: list[str]
    explained: bool


def _moment(when: float) -> str:
    # Always of the same length: a note does not grow with the clock.
    return f"{when:018.6f}"


class Untold(NamedTuple):
    """A listing cannot tell how much of a send landed.

    Attributes:
        item_ids: Items that may be of that send, rewritten by the server, or another writer's;
            () if nothing is left of what stood before it.
    """

    item_ids: tuple[str, ...]


class Unsettled:
    """The open sends of one conversation.

    The rule that everything here follows: what the first listing after a send
    shows is the truth and stays. A copy that turns up later is removed, since
    somebody has been told that it is not there.
    """

    def __init__(self, before: Unsettled | None = None) -> None:
        """Begins with nothing open.

        Args:
            before: What this takes the place of in this process. It may have known until when a
                request is alive of which somebody's note tells.
        """
        self._sends: list[_Send] = []
        self._removals: dict[str, _Open] = {}
        # Until when each request may still be applied that this process knows of, by its name;
        # -inf: a listing after that time has decided about it. A note stays in the log until
        # somebody writes another one. Without these names each session that reads it would watch
        # for a whole deadline anew, and two processes would do so in turn, for ever.
        self._until: dict[str, float] = {} if before is None else before._until
        # The names that were new to this process in the note that it restored last.
        self._met: set[str] = set()
        self._undecided: Sent = ()
        self._known: set[str] = set()
        self._behind: list[str] = []
        self._anchors: tuple[str, ...] = ()
        self._from_start = False
        # By the digest of an item of an open send.
        self._shapes: dict[str, _Shown] = {}
        self.extra: list[str] = []
        """Ids of late copies that are still to be deleted, in order."""
        self.suspected: tuple[str, ...] = ()
        """Ids of items that the last listing was the first to show, and that may be late copies,
        rewritten by the server, or another writer's. Nothing is done about them."""

    @property
    def active(self) -> bool:
        """Whether a listing must be made before the local copy can be trusted."""
        return bool(self._sends or self._removals or self.extra)

    def expired(self, now: float) -> bool:
        """Whether no open request can be alive any more, and no late copy waits to be deleted."""
        return not self.extra and all(request.expires <= now for request in self._requests)

    @property
    def _requests(self) -> list[_Open]:
        return [*self._sends, *self._removals.values()]

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
        self._shapes = {}
        self._anchors = tuple(item.id for item in reversed(items[-ANCHORS:]))
        self._from_start = complete

    def sent(self, items: Sent, *, expires: float) -> None:
        """Notes a send without an answer; the next listing decides about it."""
        self._sends.append(_Send(expires, self._met_here(expires), items))
        self._undecided = items

    def _met_here(self, expires: float) -> str:
        name = f"until {_moment(expires)}"
        self._until[name] = expires
        if len(self._until) > CROWD:
            del self._until[next(iter(self._until))]
        return name

    def reopen(self, items: Sent) -> None:
        """Asks the next listing again how much of `items` landed, after a sign that some did."""
        if self.active:
            self._undecided = items

    def removing(self, item_id: str, *, expires: float) -> None:
        """Notes a delete without an answer that was given up on, or one of `CONVERSATION`."""
        self._removals[item_id] = _Open(expires, self._met_here(expires))

    @property
    def may_be_cleared(self) -> bool:
        """Whether a delete of the conversation may have been applied, or still be."""
        return CONVERSATION in self._removals

    @property
    def crowded(self) -> bool:
        """Whether so much is known to stand behind the anchor that a new listing is due."""
        return self.active and len(self._behind) > CROWD

    def dump(
        self,
        items: Sequence[Held],
        *,
        complete: bool,
        now: float,
        sending: bool,
        removing: str | None = None,
    ) -> bytes:
        """What another process needs to go on from here.

        Args:
            items: The window before the sealed batch, oldest first.
            complete: Whether it reaches the beginning.
            now: When this is, on the clock of `expires`.
            sending: Whether that batch is sent next. Whoever takes over has to
                assume that it was; otherwise all its sends are noted here.
            removing: The id of the item that is deleted next, `CONVERSATION`, or None: likewise.
        """
        if removing is not None:
            ahead = copy.copy(self)
            ahead.begin([item for item in items if item.id != removing], complete=complete)
            # Until when it may be applied is known only once it was given up on.
            ahead._removals = {**self._removals, removing: _Open(math.inf, "")}
            return ahead.dump(items, complete=complete, now=now, sending=sending)
        if not self.active:
            noted: dict[str, Any] = {
                "anchors": [item.id for item in reversed(items[-ANCHORS:])],
                # The anchors reach the conversation's beginning only if they are the whole window.
                "from_start": complete and len(items) <= ANCHORS,
            }
        else:
            whole = self._from_start and len(self._known) <= CROWD
            noted = {
                "anchors": list(self._anchors),
                "from_start": whole,
                "known": sorted(self._known) if whole else self._behind,
                "sends": [
                    [
                        [item.decode() for item in send.items],
                        send.name,
                        max(0.0, send.expires - now),
                    ]
                    for send in self._sends
                ],
                "removals": [
                    [item_id, *([one.name, max(0.0, one.expires - now)] if one.name else [])]
                    for item_id, one in self._removals.items()
                ],
                "extra": self.extra,
                "shapes": {
                    sent: [shown.explained, *shown.digests] for sent, shown in self._shapes.items()
                },
            }
        noted["sending"] = sending
        noted["now"] = _moment(now)
        return json.dumps(noted, separators=(",", ":")).encode()

    def restore(
        self, noted: bytes, sealed: Sent, *, now: float, expires: float, sent: bool = False
    ) -> None:
        """Takes over from a process that ended.

        Args:
            noted: Its last `dump`.
            sealed: The batch that it may have sent; () if there is none.
            now: What it was before the note was read. Of a request that was given up on the note
                tells how much longer it may be alive; how old the note is, no clock tells that a
                machine's restart or its owner may change.
            expires: When requests can no longer be alive that were sent after the note.
            sent: Whether `sealed` may have been sent whatever the note says: there may have been
                a later one.
        """
        state: dict[str, Any] = json.loads(noted)
        known, self._until, self._met = self._until, {}, set()

        def met(name: str = f"from {state['now']}", left: float | None = None) -> _Open:
            """As it was met before, in this note or another one; or as the note says."""
            latest = expires if left is None else now + left
            if name not in known:
                self._met.add(name)
            self._until[name] = min(latest, known.get(name, math.inf))
            return _Open(self._until[name], name)

        def met_send(items: Sent, *named: Any) -> _Send:
            one = met(*named)
            return _Send(one.expires, one.name, items)

        self._anchors = tuple(state["anchors"])
        self._behind = list(state.get("known", ()))
        self._known = {*self._anchors, *self._behind}
        self._from_start = state["from_start"]
        self.extra = list(state.get("extra", ()))
        self._shapes = {
            sent: _Shown(digests, explained)
            for sent, (explained, *digests) in state.get("shapes", {}).items()
        }
        self._sends = [
            met_send(tuple(item.encode() for item in items), *named)
            for items, *named in state.get("sends", ())
        ]
        self._removals = {item_id: met(*named) for item_id, *named in state.get("removals", ())}
        if sealed and (sent or state["sending"]):
            self._sends.append(met_send(sealed))
            self._undecided = sealed
        elif any(send.items == sealed for send in self._sends):
            # It is among the open sends already. Added again by each process that reads the note,
            # the note would grow without end.
            self._undecided = sealed
        if not self._undecided and all(one.expires == -math.inf for one in self._requests):
            self._sends, self._removals = [], {}

    def postpone(self, seconds: float) -> None:
        """Notes that the note that was restored is so much younger, and what is met in it first."""
        for one in self._requests:
            if one.name in self._met:
                one.expires += seconds
                self._until[one.name] = one.expires
        self._met.clear()

    def acknowledged(
        self, sent: Sent, listed: Sequence[Held], rewriting: Rewriting = VERBATIM
    ) -> None:
        """Notes what an answer has shown: these items are wanted, and late copies look like them.

        Args:
            sent: The items as they were sent.
            listed: The items in the answer, one for each.
            rewriting: How the server is known to rewrite texts.
        """
        if self.active:
            fresh = [item.id for item in listed]
            self._known.update(fresh)
            self._behind += fresh
            # An item that was to be deleted as a late copy was removed by somebody else, and sent
            # again under its id: it is wanted now.
            self.extra[:] = [item_id for item_id in self.extra if item_id not in fresh]
            watched = {item for send in self._sends for item in send.items}
            for item, held in zip(sent, listed, strict=True):
                if item in watched:
                    self._note_shape(item, decode(item), unhold(held), rewriting)

    def suspect(self, untold: Untold) -> None:
        """Notes that nobody else is told which items may be of a send, once or more often."""
        self.suspected = untold.item_ids

    def removed(self, item_id: str) -> None:
        """Notes that an item was removed. One that was sent under an id may come back under it."""
        if item_id in self.extra:
            self.extra.remove(item_id)
        self._known.discard(item_id)
        self._behind = [known for known in self._behind if known != item_id]
        self._anchors = tuple(anchor for anchor in self._anchors if anchor != item_id)

    def decided_lost(self) -> None:
        """Drops the question what landed: the conversation is not to be found."""
        self._undecided = ()

    def settle(
        self,
        items: Sequence[Held],
        *,
        reached_start: bool,
        listed_at: float,
        rewriting: Rewriting = VERBATIM,
    ) -> int | Untold:
        """Compares a new listing with the open requests.

        Args:
            items: The listing's items, oldest first, at least back to the anchor.
            reached_start: Whether they reach the conversation's beginning.
            listed_at: When the listing was asked for, seconds, on the clock of
                `expires`.
            rewriting: How the server is known to rewrite texts.

        Returns:
            How many items of the undecided send landed, from the first on; 0
            if none is undecided; or that this listing cannot tell.
        """
        behind = self._behind_anchor(items, reached_start)
        landed: int | Untold = Untold(()) if self._undecided else 0
        self.suspected = ()
        if behind is not None:
            strangers: _Strangers = [
                None if item.id in self._known else unhold(item) for item in behind
            ]
            landed = self._attribute(behind, strangers, rewriting)
        self._undecided = ()
        # A send of which this listing shows a late copy is not among them (`_attribute` took it
        # out): the deletion of the copy may yet fail, and whoever comes next looks for it again.
        over = [one.name for one in self._requests if one.expires <= listed_at]
        self._until.update(dict.fromkeys(over, -math.inf))
        self._sends = [send for send in self._sends if send.expires > listed_at]
        self._removals = {
            item_id: one for item_id, one in self._removals.items() if one.expires > listed_at
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

    def _attribute(
        self, behind: Sequence[Held], strangers: _Strangers, rewriting: Rewriting
    ) -> int | Untold:
        """Says of every new item which send it came from; returns how much landed.

        A send may have landed whole or, on some servers, in part: its first
        items. Only the undecided one may stand there in part: a server that
        stores parts does so at once. Later, the beginning of a batch is more
        likely another writer's message than ours. The explanation that leaves
        the least unexplained is taken: where nobody else writes, it leaves
        nothing, and what stays is the batch, whatever stood there in truth.

        Another writer's items that equal an open send are taken for a copy of
        ours. Nothing on the server tells them apart. Items that may be a copy,
        rewritten by the server, are taken for nobody's: they are `suspected`.
        """
        wanted = _decoded(self._undecided)
        counts = Counter(send.items for send in self._sends)
        sends = {items: _decoded(items) for items in (*counts, self._undecided) if items}
        # What is known was there before the request in question was written.
        floor = max((place for place, item in enumerate(strangers) if item is None), default=-1)

        def found(items: _Decoded) -> list[Run]:
            def match(place: int, position: int) -> Match:
                listed = strangers[position]
                return (
                    Match.OTHER if listed is None else self._match(*items[place], listed, rewriting)
                )

            return list(runs(len(items), len(strangers), match))

        def requests(sent: Sent, items: _Decoded) -> Requests:
            shown, count, whole = found(items), counts[sent], len(items)
            if sent != self._undecided:
                return Requests(
                    whole, count, {run.start: whole for run in shown if run.certain == whole}
                )
            # Where a send may stand whole, a shorter part of it is no explanation.
            told = [run for run in shown if run.certain in (whole, run.possible)]
            return Requests(
                whole,
                # At least one: `reopen` asks for a batch of which no send is open any more.
                max(count, 1),
                {run.start: run.certain for run in told if count},
                {run.start: run.certain for run in shown if run.start > floor and run.certain},
                in_part=True,
            )

        ours, noted = None, True
        while noted:
            may = [requests(sent, items) for sent, items in sends.items()]
            pieces, come = explain(may)
            ours = next((piece for piece in pieces if piece.wanted), None)
            # How the server lists a text tells where the same text stands further on; what is
            # found there may tell of more texts. So this goes on until nothing new is learned.
            noted = ours is not None and self._note_shapes(
                wanted, strangers[ours.start : ours.end], rewriting
            )
        landed = 0 if ours is None else ours.end - ours.start
        for piece in pieces:
            if not piece.wanted:
                self.extra.extend(item.id for item in behind[piece.start : piece.end])
                strangers[piece.start : piece.end] = [None] * (piece.end - piece.start)
        # The batch stands there, but for its end: the item behind it may be the next of ours,
        # rewritten by the server.
        unclear: tuple[str, ...] = ()
        if landed < len(wanted):
            sought = [run for run in found(wanted) if run.start > floor]
            unclear = _ids(behind, (run for run in sought if run.possible > run.certain))
        if unclear and ours is not None and come[ours.number]:
            come[ours.number] -= 1
        for sent, count in zip(sends, come, strict=True):
            # Which of several equal sends came through cannot be told and does not matter.
            for send in [send for send in self._sends if send.items == sent][:count]:
                self._sends.remove(send)
        if unclear:
            return Untold(unclear)
        if ours is not None:
            strangers[ours.start : ours.end] = [None] * landed
        left = {send.items for send in self._sends}
        self.suspected = _ids(
            behind,
            (
                run
                for sent, items in sends.items()
                if sent in left
                for run in found(items)
                if run.possible == len(items)
            ),
        )
        return landed

    def _match(
        self,
        sent: Outgoing,
        item: Mapping[str, Any],
        listed: Mapping[str, Any],
        rewriting: Rewriting,
    ) -> Match:
        match = compare(item, listed, rewriting)
        if match is not Match.UNCLEAR:
            return match
        shown = self._shapes.get(_digest(sent))
        if shown is None:
            return match
        if shape(listed).digest in shown.digests:
            return Match.EQUAL
        # A text that this server is known to list as it was sent, or rewritten
        # in a known way, is not listed in two ways.
        return Match.OTHER if shown.explained else match

    def _note_shapes(
        self,
        items: _Decoded,
        listed: Sequence[Mapping[str, Any] | None],
        rewriting: Rewriting,
    ) -> bool:
        """Notes how the server lists the first of some items; returns whether that is new."""
        pairs = zip(items, listed, strict=False)
        return any([self._note_shape(*sent, shown, rewriting) for sent, shown in pairs])

    def _note_shape(
        self,
        sent: Outgoing,
        item: Mapping[str, Any],
        listed: Mapping[str, Any] | None,
        rewriting: Rewriting,
    ) -> bool:
        """Notes how the server lists an item: it lists every copy of it so.

        Returns:
            Whether that is new.
        """
        assert listed is not None  # only what is there is noted
        found = shape(listed)
        shown = self._shapes.setdefault(_digest(sent), _Shown([], explained=True))
        new = found.digest not in shown.digests
        if new:
            shown.digests.append(found.digest)
        nameless = {name: value for name, value in item.items() if name != "id"}
        if not (found.plain and compare(nameless, listed, rewriting) is Match.EQUAL):
            new, shown.explained = new or shown.explained, False
        return new


_Decoded: TypeAlias = tuple[tuple[Outgoing, dict[str, Any]], ...]


def _decoded(items: Sent) -> _Decoded:
    return tuple((item, decode(item)) for item in items)


def _digest(sent: Outgoing) -> str:
    return hashlib.blake2b(sent, digest_size=16).hexdigest()


def _ids(behind: Sequence[Held], found: Iterable[Run]) -> tuple[str, ...]:
    """The ids of the items in so many runs, in order."""
    places = {place for run in found for place in range(run.start, run.start + run.possible)}
    return tuple(behind[place].id for place in sorted(places))
