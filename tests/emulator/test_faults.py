"""Fault plans: seeded, scripted, and from the command line."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.emulator import Fault, FaultKind, Faults, Request
from cached_session.emulator.faults import applies, parse_rates
from cached_session.emulator.requests import is_append, is_create, is_item_delete, is_listing
from tests.emulator.messages import CREATE, ITEMS, KEY, append_to, listing_of

EVEN = dict.fromkeys(FaultKind, 1 / len(FaultKind))


@given(seed=st.integers(0, 2**32), count=st.integers(0, 50))
def test_seed_replays_the_plan(seed: int, count: int) -> None:
    """Two plans with the same seed decide the same for the same requests."""
    requests = [CREATE, append_to("conv_1"), listing_of("conv_1", "after=msg_1")] * count
    first, second = Faults(seed, EVEN), Faults(seed, EVEN)
    assert [first.draw(request) for request in requests] == [
        second.draw(request) for request in requests
    ]


def test_other_seed_is_another_plan() -> None:
    """Plans with different seeds differ."""
    requests = [append_to("conv_1")] * 50
    plans = [[Faults(seed, EVEN).draw(request) for request in requests] for seed in (1, 2)]
    assert plans[0] != plans[1]


@given(seed=st.integers(0, 1000))
def test_draws_do_not_depend_on_earlier_requests(seed: int) -> None:
    """What befalls the second request does not depend on what the first one was."""
    after_create, after_listing = Faults(seed, EVEN), Faults(seed, EVEN)
    after_create.draw(CREATE)
    after_listing.draw(listing_of("conv_1", "after=msg_1"))
    request = append_to("conv_1")
    assert after_create.draw(request) == after_listing.draw(request)


def test_rates_are_shares_of_the_requests() -> None:
    """Each kind befalls about the share of requests that its rate says, the rest go well."""
    plan = Faults(1, {"locked": 0.1, "hang": 0.3})
    drawn = Counter(fault and fault.kind for fault in (plan.draw(CREATE) for _ in range(5000)))
    assert set(drawn) == {None, FaultKind.LOCKED, FaultKind.HANG}
    assert 400 < drawn[FaultKind.LOCKED] < 600
    assert 1300 < drawn[FaultKind.HANG] < 1700


@pytest.mark.parametrize("kind", FaultKind)
def test_drawn_values_are_in_bounds(kind: FaultKind) -> None:
    """Times lie in their span, statuses are 5xx, a partial batch is never the whole."""
    plan = Faults(3, {kind: 1}, spans=dict.fromkeys(["slow", "late_commit", "refused"], (2, 3)))
    for request in (append_to("conv_1"), listing_of("conv_1", "after=msg_1")) * 50:
        fault = plan.draw(request)
        if not applies(kind, request):
            assert fault is None
            continue
        assert fault is not None
        assert fault.kind is kind
        assert 500 <= fault.status < 600
        assert 1 <= fault.items < len(ITEMS)
        if kind in (FaultKind.SLOW, FaultKind.LATE_COMMIT, FaultKind.REFUSED):
            assert 2 <= fault.delay <= 3


@pytest.mark.parametrize(
    ("rates", "spans", "words"),
    [
        ({"no_such_kind": 0.1}, {}, "no_such_kind"),
        ({"locked": -0.1}, {}, "negative"),
        ({"locked": 0.6, "hang": 0.6}, {}, "more than 1"),
        ({}, {"locked": (0, 1)}, "draws no time"),
        ({}, {"slow": (1, 0)}, "out of bounds"),
        ({}, {"slow": (-1, 0)}, "out of bounds"),
    ],
)
def test_plan_refuses_what_is_out_of_bounds(
    rates: dict[str, float], spans: dict[str, tuple[float, float]], words: str
) -> None:
    """A plan that cannot be is refused when it is made."""
    with pytest.raises(ValueError, match=words):
        Faults(0, rates, spans=spans)


@pytest.mark.parametrize(
    ("kind", "request_", "can"),
    [
        (FaultKind.PARTIAL_BATCH, CREATE, False),
        (FaultKind.PARTIAL_BATCH, append_to("c"), True),
        (FaultKind.CURSOR_REFUSED, listing_of("c"), False),
        (FaultKind.CURSOR_REFUSED, listing_of("c", "after=m"), True),
        (FaultKind.CURSOR_IGNORED, append_to("c"), False),
        (FaultKind.CURSOR_IGNORED, listing_of("c", "after=m"), True),
        (FaultKind.LATE_COMMIT, listing_of("c"), False),
        (FaultKind.LATE_COMMIT, append_to("c"), True),
        (FaultKind.LOCKED, listing_of("c"), True),
    ],
)
def test_kinds_befall_what_can_suffer_them(kind: FaultKind, request_: Request, can: bool) -> None:
    """A kind that makes no sense for a request leaves it alone, drawn or scripted."""
    assert applies(kind, request_) is can
    assert (Faults(0, {kind: 1}).draw(request_) is not None) is can
    assert (Faults.script([kind]).draw(request_) is not None) is can


def test_script_counts_only_what_it_is_told_to() -> None:
    """A script can say: the second append is reset after its commit, and nothing else."""
    plan = Faults.script([None, FaultKind.RESET_AFTER_COMMIT], only=is_append)
    requests = [CREATE, append_to("c"), listing_of("c"), append_to("c"), append_to("c")]
    kinds = [fault and fault.kind for fault in map(plan, requests)]
    assert kinds == [None, None, None, FaultKind.RESET_AFTER_COMMIT, None]


def test_script_takes_whole_faults() -> None:
    """A script may give a fault with its values, or only the kind."""
    fault = Fault(FaultKind.SLOW, delay=3)
    plan = Faults.script([fault, FaultKind.SLOW])
    assert plan.draw(CREATE) is fault
    assert plan.draw(CREATE) == Fault(FaultKind.SLOW)


def test_rates_of_the_command_line() -> None:
    """Rates read as `kind=rate` with commas, and anything else is refused."""
    assert parse_rates("locked=0.05, hang=1") == {FaultKind.LOCKED: 0.05, FaultKind.HANG: 1.0}
    assert parse_rates("") == {}
    for text in ("locked", "nonsense=1", "locked=often"):
        with pytest.raises(ValueError, match=r"form|valid FaultKind|convert"):
            parse_rates(text)


def test_what_requests_ask_for() -> None:
    """The predicates for scripts tell the endpoints apart."""
    delete = Request.parse("DELETE", "/v1/conversations/c/items/m", KEY)
    other = Request.parse("DELETE", "/v1/conversations/c", KEY)
    requests = [CREATE, append_to("c"), listing_of("c"), delete, other]
    for place, predicate in enumerate([is_create, is_append, is_listing, is_item_delete]):
        assert [predicate(request) for request in requests] == [n == place for n in range(5)]
