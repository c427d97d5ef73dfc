"""Plans have names, by which the command makes them again, and ablations name theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cached_session.emulator import FaultKind
from tests.campaigns import __main__ as command
from tests.campaigns.ablations import ABLATIONS, in_plans
from tests.campaigns.plan import Failure


@pytest.mark.parametrize(("name", "draw"), command.PLANS.items(), ids=command.PLANS)
def test_a_failure_tells_how_to_replay_it(name: str, draw: Callable[[int], Any]) -> None:
    """A seed makes the same plan again under the name that its failure tells."""
    plan = draw(7)
    assert plan == draw(7) != draw(8)
    assert f"python -m tests.campaigns {name} --start 7 " in str(Failure(plan, Exception(), []))
    only = plan.with_only([FaultKind.HANG, FaultKind.SLOW])
    assert f" {name} --only hang,slow --start 7 " in str(Failure(only, Exception(), []))


def test_every_ablation_is_tried() -> None:
    """Each safeguard is switched off in a world of which the tests try all that there are."""
    tried = {case.values[0] for case in in_plans("virtual", "fleet", "processes")}
    assert tried == set(ABLATIONS)


@pytest.mark.campaign
def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command makes runs and says what happened."""
    told = ["", "sockets", "--only", "reset_after_commit", "--until", "operations=60"]
    monkeypatch.setattr(command.sys, "argv", told)
    assert command.main() == 0
    assert "fault reset_after_commit" in capsys.readouterr().out
