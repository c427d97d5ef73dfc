"""What can go wrong with a request, and seeded or scripted plans of it.

A plan decides; it performs nothing. ``outcomes.carry_out`` turns a decision into what the service
does and what the client sees, and a transport performs that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from .requests import is_append, is_change, is_listing, items_in
from .wire import Request

__all__ = [
    "Fault",
    "FaultKind",
    "FaultPlan",
    "Faults",
    "Script",
    "applies",
    "parse_rates",
]

FaultPlan = Callable[[Request], "Fault | None"]
"""Decides for each request, in the order in which they arrive, whether and how it goes wrong."""


class FaultKind(StrEnum):
    """Every way in which a request can go wrong; "commit" is what the request asks for."""

    RESET_BEFORE_COMMIT = "reset_before_commit"
    """The connection is reset, nothing was done."""
    RESET_AFTER_COMMIT = "reset_after_commit"
    """The request was carried out, then the connection is reset."""
    ERROR_BEFORE_COMMIT = "error_before_commit"
    """Answer 5xx, nothing was done."""
    ERROR_AFTER_COMMIT = "error_after_commit"
    """The request was carried out, the answer is 5xx."""
    RATE_LIMITED = "rate_limited"
    """Answer 429 that says when to come back; nothing was done."""
    RATE_LIMITED_QUOTA = "rate_limited_quota"
    """Answer 429 with the code ``insufficient_quota``: the user has to act; nothing was done."""
    LOCKED = "locked"
    """Answer 400 ``conversation_locked``; nothing was done."""
    SLOW = "slow"
    """The request was carried out, the answer takes its time."""
    TRUNCATED = "truncated"
    """The request was carried out, the answer breaks off in the middle."""
    NOT_JSON = "not_json"
    """The request was carried out, the answer is 200 with a body that is not JSON."""
    WRONG_SHAPE = "wrong_shape"
    """The request was carried out, the answer is 200 with JSON of another shape."""
    LATE_COMMIT = "late_commit"
    """The connection is reset or stays silent, and the request is carried out later."""
    PARTIAL_BATCH = "partial_batch"
    """Only the first items of an append are stored, then the connection is reset."""
    CURSOR_REFUSED = "cursor_refused"
    """A listing answers 404 although it knows the item in ``after``."""
    CURSOR_IGNORED = "cursor_ignored"
    """A listing starts at page one although ``after`` is given."""
    REFUSED = "refused"
    """The server goes away for a while: this request is cut off, new connections are refused."""
    HANG = "hang"
    """Nothing is done and no answer comes until the client gives up."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One decision: a kind and what was drawn for it.

    Attributes:
        kind: What goes wrong.
        delay: Seconds: until the answer (slow), until the commit (late_commit), or for which
            connections are refused (refused).
        items: How many items of the append are stored (partial_batch).
        status: HTTP status (error_before_commit, error_after_commit).
        retry_after: Seconds that the answer asks to wait (rate_limited).
        silent: The client sees no answer in place of a reset (late_commit).
        variant: Which of the wrong answers is given (wrong_shape, not_json), counted from 0.
    """

    kind: FaultKind
    delay: float = 0.1
    items: int = 1
    status: int = 500
    retry_after: float = 0.1
    silent: bool = False
    variant: int = 0


_SPANS: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        FaultKind.SLOW: (0.05, 1.0),
        FaultKind.LATE_COMMIT: (0.05, 2.0),
        FaultKind.REFUSED: (0.05, 0.5),
        FaultKind.RATE_LIMITED: (0.01, 0.5),
    }
)
_STATUSES: Final = (500, 502, 503, 504)


def applies(kind: FaultKind, request: Request) -> bool:
    """Tells whether a request can suffer a kind of fault at all."""
    match kind:
        case FaultKind.PARTIAL_BATCH:
            return is_append(request) and items_in(request.body) > 1
        case FaultKind.CURSOR_REFUSED | FaultKind.CURSOR_IGNORED:
            return is_listing(request) and request.parameter("after") is not None
        case FaultKind.LATE_COMMIT:
            return is_change(request)
        case _:
            return True


def parse_rates(text: str) -> dict[str, float]:
    """Reads rates as the command line gives them: ``reset_after_commit=0.1,locked=0.05``.

    Raises:
        ValueError: A part is not ``kind=rate``, or the kind is not known.
    """
    rates: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, rate = part.partition("=")
        if not equals:
            raise ValueError(f"'{part}' is not of the form kind=rate")
        rates[FaultKind(name.strip())] = float(rate)
    return rates


class Faults:
    """A plan that draws faults from a seed.

    Two plans with the same arguments decide the same for the same requests in the same order.
    """

    def __init__(
        self,
        seed: int,
        rates: Mapping[str, float] | Mapping[FaultKind, float],
        *,
        spans: Mapping[str, tuple[float, float]]
        | Mapping[FaultKind, tuple[float, float]]
        | None = None,
    ) -> None:
        """Creates a plan.

        Args:
            seed: Seed of all draws.
            rates: For each kind the share of requests that it befalls, 0 to 1; together at
                most 1. A kind that a request cannot suffer (a partial batch of one item) leaves
                that request alone.
            spans: Bounds in seconds of the drawn times of slow, late_commit, refused and
                rate_limited, where they differ from the built-in ones.

        Raises:
            ValueError: A name is not a kind, or a rate or span is out of bounds.
        """
        self.seed = seed
        self.rates: dict[FaultKind, float] = {
            FaultKind(kind): float(rate) for kind, rate in rates.items()
        }
        self.spans: dict[str, tuple[float, float]] = dict(_SPANS)
        for span_kind, span in (spans or {}).items():
            self.spans[span_kind] = span
        if not all(rate >= 0 for rate in self.rates.values()):
            raise ValueError("a fault rate is negative")
        # A little more than 1, so that rates such as ten times 0.1 pass.
        if not sum(self.rates.values()) <= 1 + 1e-9:
            raise ValueError("the fault rates add up to more than 1")
        for kind, (low, high) in self.spans.items():
            if kind not in _SPANS:
                raise ValueError(f"{kind} draws no time")
            if not 0 <= low <= high:
                raise ValueError(f"the span of {kind} is out of bounds")
        self._random = random.Random(seed)

    def draw(self, request: Request) -> Fault | None:
        """Decides about the next request."""
        # Every call takes the same number of draws, so that one decision never shifts the next.
        chance, where, choice, coin = (self._random.random() for _ in range(4))
        kind = self._pick(chance)
        if kind is None or not applies(kind, request):
            return None
        low, high = self.spans.get(kind, (0.0, 0.0))
        return Fault(
            kind,
            delay=low + where * (high - low),
            items=1 + int(choice * max(items_in(request.body) - 1, 1)),
            status=_STATUSES[int(choice * len(_STATUSES))],
            retry_after=low + where * (high - low),
            silent=coin < 0.5,
            variant=int(choice * 1000),
        )

    __call__ = draw

    def _pick(self, chance: float) -> FaultKind | None:
        for kind, rate in self.rates.items():
            chance -= rate
            if chance < 0:
                return kind
        return None

    @staticmethod
    def script(
        decisions: Iterable[Fault | FaultKind | None],
        *,
        only: Callable[[Request], bool] | None = None,
    ) -> Script:
        """Returns a plan that was written down in advance.

        ``Faults.script([None, FaultKind.RESET_AFTER_COMMIT], only=is_append)`` resets the second
        append after its commit.

        Args:
            decisions: One for each request that counts, in order; then no more faults. One that
                its request cannot suffer is passed over.
            only: Which requests count; all by default.
        """
        return Script(decisions, only=only)


class Script:
    """A plan that was written down in advance, see ``Faults.script``."""

    def __init__(
        self,
        decisions: Iterable[Fault | FaultKind | None],
        *,
        only: Callable[[Request], bool] | None = None,
    ) -> None:
        self._decisions = iter(decisions)
        self._only = only

    def draw(self, request: Request) -> Fault | None:
        """Decides about the next request."""
        if self._only is not None and not self._only(request):
            return None
        decision = next(self._decisions, None)
        if isinstance(decision, FaultKind):
            decision = Fault(decision)
        return decision if decision is not None and applies(decision.kind, request) else None

    __call__ = draw
