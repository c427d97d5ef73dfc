"""The campaign from fresh seeds, seeds that failed once, and the ablations."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable

import pytest

pytest.importorskip("simloop", reason="the simulation needs simloop, and so Python 3.12 or later")

from tests.simulation.ablations import ABLATIONS, DOUBLED, Ablation, equal_texts_alone, notices
from tests.simulation.campaign import run, run_seed
from tests.simulation.world import Setting

# How many operations a CI run makes, from seeds that no run had before.
OPERATIONS = int(os.environ.get("CAMPAIGN_OPERATIONS", "20000"))

# Seeds that found something once. Each stays.
FAILED_ONCE = (
    28, 48, 66, 1002, 1006, 1080, 1158, 1373, 1446, 1497, 1530, 1540, 1609, 1652,
    2320, 2354, 2369, 2533, 2797, 3361, 3568, 20034, 1000724, 1001179,
    3012113, 3014610, 4012317,
)  # fmt: skip


def test_fresh_seeds_keep_every_invariant(tell: Callable[[str], None]) -> None:
    """Random operations under all fault kinds lose nothing, double nothing, and read the truth."""
    tally: Counter[str] = Counter()
    start = secrets.randbelow(1 << 40)
    tell(f"campaign from seed {start}")
    while tally["operations"] < OPERATIONS:
        tally.update(run([start + tally["seeds"]]))
    faults = sum(count for name, count in tally.items() if name.startswith("fault"))
    tell(
        f"campaign: {tally['seeds']} seeds, "
        f"{tally['operations']} operations, {tally['requests']} requests, {faults} faults"
    )
    assert tally["append applied"] > 0.3 * OPERATIONS
    assert tally["read answered"] > 0.3 * OPERATIONS


def test_servers_that_rewrite_texts(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a server rewrites texts, nothing stands there twice unless somebody was told."""
    tally: Counter[str] = Counter()
    start = secrets.randbelow(1 << 40)
    while tally["operations"] < OPERATIONS / 4:
        tally.update(run([start + tally["seeds"]], draw=Setting.rewriting))
    with capsys.disabled():
        print(
            f"\ncampaign on servers that rewrite texts, from seed {start}: {tally['seeds']} seeds, "
            f"{tally['operations']} operations, {tally['append unknown']} unknown appends, "
            f"{tally['event LateCopySuspected']} suspected later"
        )
    assert tally["append applied"] > 0.3 * OPERATIONS / 4
    # What answers have shown is used: far from every lost answer stays unknown.
    assert tally["event Reconciled"] > tally["append unknown"]


@pytest.mark.parametrize("seed", [7310102, 7310236])
def test_rewriting_seeds_that_failed_once_hold(seed: int) -> None:
    """A seed on a server that rewrites texts that once broke an invariant does not any more."""
    run([seed], draw=Setting.rewriting)


def test_equal_texts_alone_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only equal texts count as ours, a server that rewrites them stores items twice."""
    equal_texts_alone(monkeypatch)
    notices(DOUBLED, lambda: run(range(300), draw=Setting.rewriting))


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_seeds_that_failed_once_hold(seed: int) -> None:
    """A seed that once broke an invariant does not any more."""
    run_seed(seed)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda ablation: ablation.__name__)
def test_every_safeguard_is_needed(ablation: Ablation, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one safeguard switched off, the account shows what that safeguard prevents."""
    ablation(monkeypatch)
    notices(ABLATIONS[ablation], lambda: run(range(1500)))
