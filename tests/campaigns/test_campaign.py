"""Random operations under all fault kinds over real sockets, on three arrangements."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable

import pytest

from tests.campaigns.campaign import run, total
from tests.campaigns.counting import Count, count
from tests.campaigns.setting import Kind, Setting
from tests.clients import HTTP_KINDS, HttpKind

pytestmark = pytest.mark.campaign

EMULATED_SEEDS = 12
HTTP_SEEDS = 4
FORWARDED_SEEDS = 8
COMPARED_SEEDS = 8


def _fresh(seeds: int, http: HttpKind = "default") -> list[Setting]:
    start = secrets.randbelow(1 << 40)
    return [Setting.draw(seed, http) for seed in range(start, start + seeds)]


def _seeds(name: str, settings: list[Setting]) -> str:
    return f"{name}, seeds {settings[0].seed} to {settings[-1].seed}"


def _summary(tally: Counter[str]) -> str:
    return (
        f"{tally['operations']} operations, {tally['requests']} requests, {tally['faults']} faults"
    )


async def test_emulator(tell: Callable[[str], None]) -> None:
    """Over real sockets nothing is lost or doubled, and every read shows what the server held."""
    settings = _fresh(EMULATED_SEEDS)
    tell(_seeds("campaign", settings))
    tally = total(await run(settings))
    tell(f"campaign: {_summary(tally)}")
    assert tally["append applied"] > 0.2 * tally["operations"]
    assert tally["read answered"] > 0.2 * tally["operations"]


@pytest.mark.parametrize("http", [kind for kind in HTTP_KINDS if kind != "default"])
async def test_http_clients(http: HttpKind, tell: Callable[[str], None]) -> None:
    """The same holds over every HTTP client that the openai client takes."""
    settings = _fresh(HTTP_SEEDS, http)
    tell(_seeds(f"campaign on the HTTP client {http!r}", settings))
    tally = total(await run(settings))
    tell(f"campaign on the HTTP client {http!r}: {_summary(tally)}")
    assert tally["append applied"] > 0.2 * tally["operations"]


async def test_agentic_api(agentic_server: str, tell: Callable[[str], None]) -> None:
    """The same holds before a server written by others, behind a proxy that makes the faults."""
    settings = _fresh(FORWARDED_SEEDS)
    tell(_seeds("campaign on agentic-api", settings))
    tally = total(await run(settings, agentic_server))
    tell(f"campaign on agentic-api: {_summary(tally)}")
    assert tally["append applied"] > 0.2 * tally["operations"]
    assert tally["read answered"] > 0.2 * tally["operations"]


async def test_beside_the_sdk(tell: Callable[[str], None]) -> None:
    """Under the same plan and operations the SDK's session doubles items, this one none."""
    start = secrets.randbelow(1 << 40)
    counts: dict[Kind, Count] = {}
    for kind in ("cached", "sdk"):
        settings = [Setting.compared(seed, kind) for seed in range(start, start + COMPARED_SEEDS)]
        tell(_seeds(f"comparison, {kind} session", settings))
        worlds = await run(settings, at_once=COMPARED_SEEDS)
        tally = total(worlds)
        counts[kind] = sum(map(count, worlds), Count(0, 0, 0))
        found = counts[kind]
        tell(
            f"comparison, {kind} session: {_summary(tally)}; "
            f"of {found.sent} items {found.lost} lost, {found.doubled} doubled; "
            f"{tally['append failed'] + tally['append unknown']} appends and "
            f"{tally['read failed']} reads raised, {tally['read wrong']} reads wrong"
        )
    assert counts["cached"].sent > 0
    assert (counts["cached"].lost, counts["cached"].doubled) == (0, 0)
    assert counts["sdk"].doubled > 0
