"""Whatever an agent does, the model and the server get what they get with the SDK's session."""

from __future__ import annotations

import pytest

# Each adds its scenarios.
import tests.runner.approvals
import tests.runner.interruptions  # noqa: F401
from tests.runner.scenarios import SCENARIOS
from tests.runner.stage import OpenSession, cached, checking, expected_of, play, wrapping

pytestmark = [
    pytest.mark.parametrize("name", SCENARIOS),
    # The SDK's session, where a tool's output is a list, as its own types allow.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_same_inputs_and_history(name: str, streamed: bool) -> None:
    """The model receives the same inputs, runs end alike, and the server holds the same items."""
    expected = await expected_of(SCENARIOS[name], streamed=streamed)
    actual = await play(SCENARIOS[name], cached, streamed=streamed)
    assert actual == expected
    assert len(actual.requests) < len(expected.requests)


@pytest.mark.parametrize("open_session", [wrapping, checking])
async def test_other_ways_to_open_a_session(name: str, open_session: OpenSession) -> None:
    """The same holds for a session that wraps, and for one that checks at every read."""
    expected = await expected_of(SCENARIOS[name], streamed=False)
    assert await play(SCENARIOS[name], open_session) == expected
