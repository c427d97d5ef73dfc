"""A ledger, a log of a few lists, and a server on which things go wrong. Nothing here waits.

What `conversation/delivery.py` and `conversation/record.py` do with an event loop is done here
step by step, so that thousands of runs take seconds. `World.ideal` is the account: what a caller
who was told the truth expects to find.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cached_session.core.history import History
from cached_session.core.items import Held, accept, batches, body, copies, hold, unhold
from cached_session.core.ledger import Batch, Delete, Front, Ledger, List, Seal, Send, Trust
from cached_session.core.matching import VERBATIM
from cached_session.core.queue import Row
from cached_session.core.unsettled import ANCHORS, Untold
from cached_session.emulator import (
    ConversationStore,
    FaultKind,
    Faults,
    Request,
    Service,
    Sight,
    carry_out,
    seeded_ids,
)
from tests.campaigns.account import Violation, text_of
from tests.campaigns.menu import KEY

WATCH = 5.0
"""Seconds for which a request without an answer is watched; none comes later than 2.1."""
ATTEMPTS = 4
ENOUGH = 400
"""Requests after which one operation is taken to go on without end."""
KINDS = tuple(
    kind for kind in FaultKind if kind not in (FaultKind.CURSOR_IGNORED, FaultKind.CURSOR_REFUSED)
)


class Ended(Exception):
    """The process ends here, or the event loop."""


class Crashed(Ended):
    """The process: its memory is gone."""


class Torn(Ended):
    """The event loop: whoever comes next finds the turn lost."""


class Failed(Exception):
    """A request failed."""


class Lost(Failed):
    """Without an answer that can be read."""


class Refused(Failed):
    """For certain."""

    def __init__(self, code: str | None, *, retryable: bool) -> None:
        super().__init__(code)
        self.code = code
        self.retryable = retryable


class Undecidable(Exception):
    """No listing will tell what became of a batch."""


class At(NamedTuple):
    """A moment; there is one clock."""

    at: float

    def told(self, now: float) -> float:
        """When it was."""
        return self.at


@dataclass
class Log:
    """What outlives the process."""

    rows: list[Row] = field(default_factory=list)
    last: int = 0
    doubt: bytes | None = None
    paused: str | None = None
    kept: tuple[list[Held], bool, int] | None = None


def _held(answer: Any) -> list[Held]:
    """The items of an answer.

    Raises:
        Lost: It is of another shape.
    """
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise Lost
    try:
        return [hold(item) for item in items]
    except (KeyError, TypeError):
        raise Lost from None


class World:
    """One run.

    Attributes:
        seed: Decides everything.
        ideal: The texts that were appended here and are neither refused nor removed, in order.
        tally: What has happened, and how often.
    """

    def __init__(self, seed: int) -> None:
        """Prepares a run; the seed decides everything."""
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.tally: Counter[str] = Counter()
        promises = rng.choices(("delivered", "recorded", "both"), (4, 5, 1))[0]
        self.delivers, self.records = promises != "recorded", promises != "delivered"
        # In a run with both, a process that takes over knows of a part of the requests alone.
        self.crashes = promises == "recorded"
        self.others = rng.random() < 0.3
        self.named = rng.random() < 0.25
        self.repeats = not self.others and not self.named and rng.random() < 0.6
        self.page = rng.choice((7, 20, 100))
        rate = rng.choice((0.0, 0.15, 0.4))
        shares = [rng.random() ** 2 for _ in KINDS]
        if self.named:
            # Only a late commit has ids stand there already that were to be sent again.
            shares[KINDS.index(FaultKind.LATE_COMMIT)] += 5.0
        rates: dict[FaultKind, float] = {
            kind: rate * share / sum(shares) for kind, share in zip(KINDS, shares, strict=True)
        }
        spans = {"late_commit": (0.02, rng.choice((0.3, 2.0)))}
        self.faults = Faults(seed, rates, spans=spans)
        self.service = Service(ConversationStore(new_id=seeded_ids(seed)))
        made = self.service.handle(Request("POST", "/v1/conversations", (), KEY, b"{}"))
        self.conversation: str = made.json()["id"]
        self.root = f"/v1/conversations/{self.conversation}/items"
        self.now = 0.0
        self.refusing = 0.0
        self.late: list[tuple[float, int, Request]] = []
        self.requests = 0
        self.texts = 0
        # Nothing goes wrong; and nobody ends.
        self.calm, self.sheltered = False, False
        self.log = Log()
        self.ledger = self._new()
        self.elsewhere: Ledger | None = None
        self.ideal: list[str] = []
        # A batch was found to be undecidable: somebody has to look.
        self.undecidable = False
        # Another writer has removed items of ours; a check does not look so far back.
        self.meddled = False
        if rng.random() < 0.25:
            self.ideal = [f"before {number}" for number in range(36)]
            for batch in batches(self._items(self.ideal)):
                self._past("POST", self.root, body(batch))

    def __repr__(self) -> str:
        return f"seed {self.seed}: {self.ledger.own.front}, {self.ledger.recorded.front}"

    def _new(self) -> Ledger:
        return Ledger(self.conversation, threading.Lock())

    # The server, and what goes wrong

    def _tick(self, seconds: float) -> None:
        self.now += seconds
        while self.late and self.late[0][0] <= self.now:
            self.service.handle(heapq.heappop(self.late)[2])
            self.tally["late commits"] += 1

    def _may_crash(self, chance: float = 0.012) -> None:
        if self.crashes and not self.sheltered and self.rng.random() < chance:
            raise Crashed

    def _may_end(self, method: str) -> None:
        self._may_crash(0.04 if method == "POST" else 0.012)
        self._may_tear(0.015)

    def _may_tear(self, chance: float) -> None:
        if not self.sheltered and self.rng.random() < chance:
            raise Torn

    def _past(self, method: str, path: str, content: bytes = b"") -> Any:
        """Another writer asks; nothing goes wrong."""
        return self.service.handle(Request(method, path, (), KEY, content)).json()

    def _ask(
        self, method: str, path: str, query: tuple[tuple[str, str], ...] = (), content: bytes = b""
    ) -> Any:
        request = Request(method, path, query, KEY, content)
        self.requests += 1
        if self.requests > ENOUGH:
            raise Violation("there is no end of requests")
        self._may_end(method)
        self._tick(self.rng.uniform(0, 0.05))
        if self.now < self.refusing:
            raise Refused(None, retryable=True)
        # A delete that is not known to have been applied may remove what was sent again under the
        # same id meanwhile, and what comes late under that id counts as what was to be removed.
        sure = self.calm or (self.named and method == "DELETE")
        fault = None if sure else self.faults(request)
        outcome = carry_out(self.service, request, fault)
        if fault is not None:
            self.tally["faults"] += 1
        if outcome.late is not None:
            heapq.heappush(self.late, (self.now + outcome.late, self.requests, request))
        if outcome.sight is Sight.REFUSED:
            self.refusing = self.now + outcome.delay
        self._tick(self.rng.uniform(0, 0.05))
        if not sure:
            self._may_end(method)
        response = outcome.response
        if outcome.sight is not Sight.ANSWER or response is None or response.status >= 500:
            raise Lost
        try:
            answer = json.loads(response.body)
        except ValueError:
            raise Lost from None
        if response.status < 400:
            return answer
        code = answer["error"]["code"]
        raise Refused(code, retryable=code in ("conversation_locked", "rate_limit_exceeded"))

    def _expires(self) -> float:
        return self.now + WATCH

    # Listings

    def _pages(self, after: str | None, size: int) -> tuple[list[Held], bool]:
        query = [("order", "desc"), ("limit", str(size))]
        if after is not None:
            query.append(("after", after))
        answer = self._ask("GET", self.root, tuple(query))
        items, more = _held(answer), answer.get("has_more")
        if not isinstance(more, bool):
            raise Lost
        return items, more

    def _list(self, limit: int | None, *, anew: bool = False) -> int | Untold | None:
        ledger, watch = self.ledger, self.ledger.watch
        known = None if anew else ledger.known
        positions: dict[str, int] = {}
        if known is not None and (watch.anchors or not watch.active):
            positions = known.landmarks(64, below=watch.anchors)
        until = positions or watch.anchors if watch.active else positions
        enough = None if watch.active else limit if known is not None else limit or self.page
        items: list[Held] = []
        number, asked_at, found, more = ledger.begin_listing(), self.now, None, True
        while found is None and more and (enough is None or len(items) < enough):
            page, more = self._pages(items[-1].id if items else None, self.page)
            places = range(len(items), len(items) + len(page))
            items += page
            found = next((place for place in places if items[place].id in until), None)
        return ledger.listed(
            items[::-1],
            found=None if found is None else len(items) - 1 - found,
            positions=positions,
            reached_start=not more,
            number=number,
            at=At(asked_at),
            asked_at=asked_at,
            rewriting=VERBATIM,
        )

    def _remove_late(self) -> None:
        watch = self.ledger.watch
        if watch.extra:
            self._note()
        while watch.extra:
            item_id = watch.extra[0]
            self._delete(item_id)
            self.ledger.removed_copy(item_id)
            self.tally["late copies removed"] += 1

    def _delete(self, item_id: str) -> bool:
        """Deletes an item; False: somebody else had."""
        lost = False
        for _ in range(ATTEMPTS):
            try:
                self._ask("DELETE", f"{self.root}/{item_id}")
                return True
            except Lost:
                lost = True
            except Refused as refused:
                if refused.code is None and not refused.retryable:
                    return lost
            self._tick(0.3)
        raise Lost

    def _fresh(self, limit: int | None, trust: Trust) -> History:
        ledger = self.ledger
        if ledger.known is None or ledger.watch.active or not ledger.checked(trust):
            self._list(limit)
        while True:
            while ledger.watch.extra:
                self._remove_late()
                self._list(limit)
            if ledger.known is None:
                raise Violation("a listing has shown nothing")
            if ledger.known.covers(limit):
                return ledger.known
            try:
                older, more = self._pages(ledger.known.items[0].id, self.page)
            except Refused as refused:
                if refused.code is not None:
                    raise
                # Another writer has removed the oldest that is known: no page begins there.
                ledger.forget()
                self._list(limit)
            else:
                ledger.extend_back(older[::-1], complete=not more)

    # The log. A commit is applied to the ledger at once, or the process ends between the two.

    def _commit(self, change: Callable[[], None]) -> None:
        self._may_crash()
        change()
        self._may_crash()

    def _row(self, place: int) -> Row:
        return self.log.rows[place]

    def _keep(self) -> tuple[list[Held], bool, int] | None:
        known = None if self.ledger.watch.extra else self.ledger.known
        if known is None or not (len(known) or known.complete):
            return None
        return known.items[:], known.complete, known.verified

    def _landed(self) -> None:
        through = self.ledger.queue.landed
        self.log.rows = [row for row in self.log.rows if row.seq > through or not row.sealed]
        self.log.kept = self._keep()

    def _accept(self, texts: Sequence[str]) -> None:
        items = self._items(texts)
        log, ledger = self.log, self.ledger
        rows = [Row(log.last + n + 1, item, False, self.now) for n, item in enumerate(items)]

        def change() -> None:
            log.rows += rows
            log.last = rows[-1].seq
            self.ideal += texts

        self._commit(change)
        ledger.accepted(rows, (), idle=True)

    def _seal(self) -> None:
        log, ledger, known = self.log, self.ledger, self.ledger.known
        assert known is not None
        through = ledger.queue.through()
        doubt = ledger.watch.dump(known.items, complete=known.complete, now=self.now, sending=True)

        def change() -> None:
            self._landed()
            log.rows = [row._replace(sealed=row.sealed or row.seq <= through) for row in log.rows]
            log.doubt = doubt

        self._commit(change)
        ledger.sealed([row for row in log.rows if row.sealed], through, ())

    def _note(self) -> None:
        if not self.records:
            return
        log, ledger, known = self.log, self.ledger, self.ledger.known
        batch, doubt = ledger.recorded.items, None
        if ledger.watch.active or (batch and known is not None):
            items, complete = ([], False) if known is None else (known.items, known.complete)
            doubt = ledger.watch.dump(items, complete=complete, now=self.now, sending=False)

        def change() -> None:
            self._landed()
            if doubt is not None or not batch:
                log.doubt = doubt

        self._commit(change)
        ledger.noted((), unsent=doubt is not None and bool(batch))

    def _pause(self, reason: str) -> None:
        self.ledger.pause(reason, None)
        self._commit(lambda: setattr(self.log, "paused", reason))
        self.tally["paused"] += 1

    def _load(self, *, first: bool) -> None:
        """Takes the log's word for everything."""
        log, kept = self.log, None
        if log.kept is not None:
            items, complete, verified = log.kept
            kept = History(items, complete=complete)
            kept.verified = verified
        self.ledger.load(
            log.rows,
            log.doubt,
            log.paused,
            kept,
            first=first,
            mine=True,
            now=self.now,
            expires=self._expires(),
        )
        self.ledger.as_of(self.now)

    # Sending

    def _send(self, batch: Batch) -> None:
        """Sends a batch; returns if it is on the server, or a listing has to tell."""
        ledger = self.ledger
        ledger.sending(batch)
        try:
            held = _held(self._ask("POST", self.root, (), body(batch.items)))
            if len(held) != len(batch.items):
                raise Lost
        except Lost:
            ledger.lost(expires=self._expires())
            self.tally["lost answers"] += 1
            raise Lost from None
        except Refused as refused:
            if refused.code == "item_already_in_conversation" and ledger.duplicate(batch):
                self.tally["duplicates"] += 1
                raise Lost from None
            ledger.refused(batch, gone=False)
            raise
        ledger.applied(batch, held, VERBATIM)
        self._look_for_late(batch)

    def _look_for_late(self, batch: Batch) -> None:
        if batch.resent and self.ledger.watch.active:
            try:
                self._list(1)
                self._remove_late()
            except Failed:
                self.tally["late copies looked for later"] += 1

    def _decide(self, batch: Batch) -> None:
        self._others_meddle(batch)
        landed = self._list(1)
        if isinstance(landed, Untold):
            if self.ledger.next(batch, anchored=True) is not None:
                raise Violation("something is next for a batch of which nobody can tell")
            raise Undecidable
        self.tally["reconciled"] += 1

    def _settle(self) -> None:
        batch = self.ledger.recorded
        if not batch.items or not self.ledger.watch.undecided:
            return
        try:
            self._decide(batch)
        except Undecidable:
            self.undecidable = True
            self._pause("untold")
            raise
        self._note()

    def _send_recorded(self) -> bool:
        """Puts the next batch of the queue on the server; False: there is none to be sent."""
        ledger, batch, anchored = self.ledger, self.ledger.recorded, False
        for _ in range(20):
            match ledger.next(batch, anchored=anchored):
                case List() if batch.front is Front.DOUBT:
                    self._settle()
                case List(limit, anew):
                    self._list(limit, anew=anew)
                    anchored = True
                case Delete():
                    self._remove_late()
                case Seal():
                    self._seal()
                    self._may_tear(0.03)
                case Send(items):
                    if not items or items != ledger.queue.batch:
                        raise Violation("what is sent is not what is sealed")
                    self._deliver_recorded(batch)
                    return True
                case None:
                    return False
                case step:
                    raise Violation(f"{step} is next")
        raise Violation("there is no end of steps")

    def _deliver_recorded(self, batch: Batch) -> None:
        ledger = self.ledger
        try:
            self._send(batch)
        except Failed as error:
            if batch.front is Front.DOUBT and self.rng.random() < 0.6:
                try:
                    self._decide(batch)
                except Undecidable:
                    ledger.forget()
                    self.undecidable = True
                    self._pause("untold")
                    raise
                except Failed:
                    ledger.forget()
                    raise Lost from error
            if not ledger.watch.undecided:
                self._note()
            if batch.items:
                raise

    def _attempt(self) -> bool:
        """One attempt of the sender, which pauses if repeating does not help; as above."""
        try:
            return self._send_recorded()
        except Refused as refused:
            if not refused.retryable:
                self._pause("refused")
            raise

    def _deliver_own(self) -> None:
        """Puts the own batch on the server, or raises what stopped it."""
        ledger, batch, failures = self.ledger, self.ledger.own, 0
        for _ in range(20):
            try:
                match ledger.next(batch, anchored=True):
                    case List() if batch.front is Front.DOUBT:
                        self._decide(batch)
                        if not batch.items:
                            self._look_for_late(batch)
                    case List(limit):
                        self._list(limit)
                    case Delete():
                        self._remove_late()
                    case Seal():
                        ledger.sealed_own()
                    case Send():
                        self._send(batch)
                    case None:
                        return
                    case step:
                        raise Violation(f"{step} is next")
            except Failed as error:
                failures += 1
                self._tick(self.rng.uniform(0.05, 0.5))
                if failures >= ATTEMPTS or (isinstance(error, Refused) and not error.retryable):
                    if batch.front is Front.DOUBT:
                        self._decide(batch)
                        if not batch.items:
                            return
                    raise
        raise Violation("there is no end of steps")

    # The calls of a session

    def _items(self, texts: Sequence[str]) -> list[bytes]:
        return accept(
            [
                {"role": "user", "content": text, "type": "message"}
                | ({"id": f"msg_{text}"} if self.named else {})
                for text in texts
            ]
        )

    def _draw(self) -> list[str]:
        texts = []
        for _ in range(self.rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 22))):
            self.texts += 1
            again = self.repeats and self.rng.random() < 0.3
            texts.append(self.rng.choice(("yes", "no")) if again else f"t{self.texts}")
        return texts

    def append(self) -> None:
        """Appends with the one promise or the other."""
        texts = self._draw()
        if len(self.ideal) + len(texts) > 50:
            return
        if self.records and (not self.delivers or self.rng.random() < 0.5):
            if self.log.paused is None:
                self._accept(texts)
            return
        for _ in range(3):
            if self.ledger.queue and not self._attempt():
                return
        if not self.ledger.queue:
            self._append_own(texts)

    def _append_own(self, texts: list[str]) -> None:
        ledger, unknown = self.ledger, 0
        here: list[str] = []
        try:
            for items in batches(self._items(texts)):
                if ledger.known is None or ledger.watch.undecided:
                    self._list(ANCHORS if ledger.known is None else 1)
                ledger.take_own(items)
                batch, here, texts = ledger.own, texts[: len(items)], texts[len(items) :]
                try:
                    self._deliver_own()
                finally:
                    unknown = len(batch.items)
                    self.ideal += here[: len(here) - unknown]
        except Failed:
            if ledger.own.front is Front.DOUBT:
                ledger.forget()
            else:
                unknown = 0
        except Undecidable:
            ledger.forget()
        except Torn:
            ledger.abandon(expires=self._expires())
            self.tally["torn"] += 1
            if ledger.next(ledger.own, anchored=True) is not None:
                raise Violation("it is still to be sent, and its caller has left") from None
        ledger.withdraw_own()
        if unknown:
            self.tally["unknown appends"] += 1
            self._learn(here[len(here) - unknown :])

    def _learn(self, maybe: list[str]) -> None:
        """Has the next read show what is not known; and that stays so."""
        shown = self._told()
        for count in range(len(maybe), -1, -1):
            if shown == self.ideal + maybe[:count]:
                self.ideal += maybe[:count]
                return
        raise Violation(f"shown is {shown}, not {self.ideal} and a part of {maybe}")

    def _told(self) -> list[str]:
        """What a caller reads who asks until an answer comes."""
        before, self.sheltered = (self.calm, self.sheltered), True
        if self.meddled:
            self.ledger.forget_all()
        try:
            for attempt in range(20):
                self.calm = self.calm or attempt > 8
                try:
                    return self._own(self._look(None, self._asking()))
                except Failed:
                    self._tick(0.2)
        finally:
            self.calm, self.sheltered = before
        raise Violation("a read has no end")

    def _asking(self) -> Trust:
        return Trust(self.ledger.listings + 1, -math.inf, self.now)

    def _look(self, limit: int | None, trust: Trust) -> list[dict[str, Any]]:
        """Reads from the server, as `Conversation.read` does."""
        ledger = self.ledger
        if not self.records:
            return copies(self._fresh(limit, trust).tail(limit))
        # That is for those who append. A read shows what there is.
        with contextlib.suppress(Undecidable):
            self._settle()
        waiting = len(ledger.queue)
        history = self._fresh(None if limit is None else max(1, limit - waiting), trust)
        if not waiting:
            ledger.show_nothing()
            history = self._fresh(limit, Trust(0, -math.inf, self.now))
            return copies(history.tail(limit))
        ledger.show()
        shown = ledger.queue.view(limit)
        if shown is None:
            raise Violation("what was listed is not shown")
        return shown

    def read(self) -> None:
        """Reads, from memory if it can be."""
        limit = self.rng.choice((None, None, 1, 4))
        asks = self.rng.random() < 0.3
        trust = self._asking() if asks else Trust(1, -math.inf, self.now)
        got = self.ledger.view(limit, trust, idle=True)
        if got is None:
            got = self._look(limit, trust)
        else:
            self.tally["hits"] += 1
        self.tally["reads"] += 1
        self._check(got, limit)

    def _own(self, items: Sequence[dict[str, Any]]) -> list[str]:
        return [text for text in map(text_of, items) if not text.startswith("other")]

    def _check(self, got: list[dict[str, Any]], limit: int | None) -> None:
        if self.undecidable or self.meddled:
            return
        own = self._own(got)
        full = limit is None or not self.others
        wanted = self.ideal if limit is None else self.ideal[-limit:]
        if not full:
            wanted = self.ideal[len(self.ideal) - len(own) :]
        if own != wanted:
            raise Violation(f"read {own}\nnot {wanted}")

    def pop(self) -> None:
        """Removes the newest item, wherever it is."""
        log, ledger = self.log, self.ledger
        if self.records and log.rows and not log.rows[-1].sealed:
            row = log.rows[-1]

            def change() -> None:
                log.rows.pop()
                self._popped(text_of(json.loads(row.data)))

            self._commit(change)
            ledger.withdrawn(row.seq)
            return
        if ledger.queue and self.rng.random() < 0.3:
            # It came while this waited for the turn.
            self._note()
            return
        if ledger.queue and not (self._attempt() and not ledger.queue):
            return
        if ledger.watch.active or log.doubt is not None:
            self._note()
        for _ in range(8):
            known = self._fresh(1, Trust(1, -math.inf, self.now))
            if not len(known):
                if self.ideal:
                    raise Violation("nothing is there to be removed")
                return
            if self._pop_listed(known.items[-1]):
                return
            ledger.forget()
        raise Violation("the newest item is always gone")

    def _pop_listed(self, last: Held) -> bool:
        ledger, text = self.ledger, text_of(unhold(last))
        ledger.removing(last.id)
        try:
            removed = self._delete(last.id)
        except Failed:
            ledger.lost(expires=self._expires())
        except Torn:
            ledger.abandon(expires=self._expires())
        except Crashed:
            self._restart()
        else:
            ledger.answered()
            if removed:
                ledger.removed_newest()
                try:
                    self._note()
                except Crashed:
                    # Nobody heard that it was removed. Under an id of its own a late commit may
                    # bring it back, and whoever goes on does not know it for one.
                    self._restart()
                    return self._popped_or_not(text)
                self._popped(text)
            elif not self.others:
                raise Violation(f"{text} is gone")
            return removed
        return self._popped_or_not(text)

    def _popped_or_not(self, text: str) -> bool:
        """Reads what became of an item whose removal nobody has heard of."""
        # When no request is on its way any more.
        self._tick(WATCH / 2)
        shown = self._told()
        if not text.startswith("other") and shown == self.ideal[:-1]:
            self._popped(text)
        elif shown != self.ideal and not self.undecidable:
            raise Violation(f"after a pop {shown}, not {self.ideal}")
        return True

    def _popped(self, text: str) -> None:
        if text.startswith("other"):
            return
        if not self.ideal or self.ideal[-1] != text:
            raise Violation(f"{text} was removed from {self.ideal}")
        self.ideal.pop()

    def send(self) -> None:
        """The sender makes a few attempts."""
        for _ in range(self.rng.randint(1, 5)):
            try:
                if not self._attempt():
                    return
            except Failed:
                self._tick(self.rng.uniform(0.05, 0.5))

    def give_up(self) -> None:
        """The sender meets an error that nobody expected, and pauses."""
        if self.ledger.waits:
            self._pause("unexpected")

    def decide(self) -> None:
        """Somebody decides about what is paused."""
        if self.log.paused is None:
            return
        if self.delivers:
            # Or what landed comes back from the log, behind which something was delivered since.
            self._note()
        if self.undecidable or self.rng.random() < 0.3:
            self.drop()
            return
        self.log.paused = None
        self._load(first=False)

    def drop(self) -> None:
        """Takes back all that waits; what is on the server already stays there."""
        log, ledger = self.log, self.ledger
        if not self.records or not ledger.queue:
            return
        waiting, batch = len(ledger.queue), ledger.recorded.items
        before, self.sheltered = self.sheltered, True
        dropped = [row.seq for row in log.rows]
        self._landed()
        log.rows, log.doubt, log.paused = [], None, None
        ledger.dropped(dropped, sealed=True)
        self._note()
        if ledger.queue or ledger.next(ledger.recorded, anchored=True) is not None:
            raise Violation("what was dropped still waits")
        self.undecidable = False
        del self.ideal[len(self.ideal) - waiting :]
        self._learn([text_of(json.loads(item)) for item in batch])
        self._note()
        self.sheltered = before
        self.tally["dropped"] += 1

    def wait(self) -> None:
        """Time goes by."""
        self._tick(self.rng.choice((0.1, 1.0, WATCH + 1.0)))

    def refresh(self) -> None:
        """Forgets what is known."""
        self.ledger.forget_all()

    def hand_over(self) -> None:
        """Another process goes on, which may have had the conversation before."""
        if not self.crashes:
            return
        self._note()
        first = self.elsewhere is None
        self.ledger, self.elsewhere = self.elsewhere or self._new(), self.ledger
        self._load(first=first)
        self.tally["handed over"] += 1

    def other(self) -> None:
        """Another writer appends something, or removes what it had appended."""
        if not self.others:
            return
        theirs = [item for item in self._there() if text_of(item).startswith("other")]
        if theirs and self.rng.random() < 0.4:
            self._past("DELETE", f"{self.root}/{self.rng.choice(theirs)['id']}")
            return
        self.texts += 1
        item = {"role": "developer", "content": f"other {self.texts}", "type": "message"}
        self._past("POST", self.root, json.dumps({"items": [item]}).encode())

    def _there(self) -> Sequence[Any]:
        """What the server holds, as it stores it."""
        return self.service.store.items(self.conversation)

    def _others_meddle(self, batch: Batch) -> None:
        """Another writer removes all that a batch in doubt stands behind."""
        if not self.others or self.late or self.calm or self.rng.random() < 0.8:
            return
        there = self._there()
        sent = {text_of(json.loads(item)) for item in batch.items}
        wanted = sent.union(self.ideal)
        texts = self._own(there)
        if len({*texts}) < len(texts) or not wanted.issuperset(texts):
            return  # a late copy, which could not be told any more
        anchors = {*self.ledger.watch.anchors}
        gone = [item for item in there if item["id"] in anchors]
        if not sent.isdisjoint(map(text_of, gone)):
            return  # of the batch itself
        for item in gone:
            self._past("DELETE", f"{self.root}/{item['id']}")
        removed = {text_of(item) for item in gone}
        self.ideal = [text for text in self.ideal if text not in removed]
        self.meddled = True
        self.tally["anchors removed"] += 1

    # All of it

    def _restart(self) -> None:
        self.tally["crashes"] += 1
        self.ledger = self._new()
        self._load(first=True)

    def run(self, operations: int = 40) -> None:
        """Makes random calls, and looks at the account at the end.

        Raises:
            Violation: It is wrong.
        """
        calls = {
            self.append: 5.0,
            self.read: 5.0,
            self.pop: 1.5,
            self.wait: 1.0,
            self.refresh: 0.4,
            self.other: 2.0 * self.others,
            self.send: 6.0 * self.records,
            self.decide: 2.0 * self.records,
            self.give_up: 0.5 * self.records,
            self.drop: 0.4 * self.records,
            self.hand_over: 0.7 * self.crashes,
        }
        for call in self.rng.choices([*calls], [*calls.values()], k=operations):
            self.tally["operations"] += 1
            self.requests = 0
            try:
                call()
            except Failed:
                self.tally["failed"] += 1
            except Undecidable:
                self.tally["undecidable"] += 1
            except Torn:
                self.tally["torn"] += 1
                self.ledger.abandon(expires=self._expires())
            except Crashed:
                self._restart()
            self._check_pause()
        self._end()

    def _check_pause(self) -> None:
        ledger = self.ledger
        if ledger.paused is not None and ledger.next(ledger.recorded, anchored=True) is not None:
            raise Violation("something is next although it is paused")

    def _end(self) -> None:
        self.calm = self.sheltered = True
        self.requests = 0
        for _ in range(60):
            self.decide()
            if not self.ledger.queue:
                break
            try:
                self._send_recorded()
            except Failed:
                self._tick(0.5)
            except Undecidable:
                self.tally["undecidable"] += 1
        if self.ledger.queue:
            raise Violation(f"{len(self.ledger.queue)} still wait")
        self._tick(WATCH / 2)
        self.refresh()
        shown = self._look(None, self._asking())
        there = self.service.items(self.conversation)
        if shown != there:
            raise Violation(f"at the end {[*map(text_of, shown)]}\nthere {[*map(text_of, there)]}")
        if self._own(there) != self.ideal:
            raise Violation(f"at the end {self._own(there)}\nnot {self.ideal}")
