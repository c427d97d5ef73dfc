"""Random operations under all fault kinds over real sockets, on three arrangements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.campaigns.account import text_of
from tests.campaigns.campaign import play, total
from tests.campaigns.plan import fresh, summary
from tests.campaigns.setting import Kind, Setting
from tests.clients import HTTP_KINDS, HttpKind

pytestmark = pytest.mark.campaign

Tell = Callable[[str], None]

EMULATED_SEEDS = 12
HTTP_SEEDS = 4
FORWARDED_SEEDS = 8
COMPARED_SEEDS = 8


async def _campaign(title: str, seeds: int, tell: Tell, **about: Any) -> Counter[str]:
    start = fresh(title, tell)
    settings = [Setting.draw(seed, **about) for seed in range(start, start + seeds)]
    tally = total(await play(settings))
    tell(f"{title}: {summary(tally)}")
    assert tally["append done"] > 0.2 * tally["operations"]
    return tally


async def test_emulator(tell: Tell) -> None:
    """Over real sockets nothing is lost or doubled, and every read shows what the server held."""
    tally = await _campaign("campaign", EMULATED_SEEDS, tell)
    assert tally["read done"] > 0.2 * tally["operations"]


@pytest.mark.parametrize("http", [kind for kind in HTTP_KINDS if kind != "default"])
async def test_http_clients(http: HttpKind, tell: Tell) -> None:
    """The same holds over every HTTP client that the openai client takes."""
    await _campaign(
        f"campaign on the HTTP client {http!r}", HTTP_SEEDS, tell, name=f"sockets-{http}", http=http
    )


async def test_agentic_api(agentic_server: str, tell: Tell) -> None:
    """The same holds before a server written by others, behind a proxy that makes the faults."""
    title = "campaign on agentic-api"
    about = {"name": "agentic", "upstream": agentic_server}
    tally = await _campaign(title, FORWARDED_SEEDS, tell, **about)
    assert tally["read done"] > 0.2 * tally["operations"]


async def test_beside_the_sdk(tell: Tell) -> None:
    """Under the same plan and operations the SDK's session doubles items, this one none."""
    start = fresh("comparison", tell)
    counts: dict[Kind, Counter[str]] = {}
    for kind in ("cached", "sdk"):
        settings = [Setting.compared(seed, kind) for seed in range(start, start + COMPARED_SEEDS)]
        worlds = await play(settings, at_once=COMPARED_SEEDS)
        tally = total(worlds)
        found = counts[kind] = Counter()
        for world in worlds:
            found.update(world.account.count([*map(text_of, world.listing)]))
        tell(
            f"comparison, {kind} session: {summary(tally)}; "
            f"of {found['sent']} items {found['lost']} lost, {found['doubled']} doubled; "
            f"{tally['append failed'] + tally['append unknown']} appends and "
            f"{tally['read failed']} reads raised, {tally['read wrong']} reads wrong"
        )
    assert counts["cached"]["sent"] > 0
    assert (counts["cached"]["lost"], counts["cached"]["doubled"]) == (0, 0)
    assert counts["sdk"]["doubled"] > 0
