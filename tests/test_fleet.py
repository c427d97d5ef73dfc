"""The example of a fleet as it is served: two machines, PostgreSQL, the emulator over HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from benchmarks.serving import ROOT, serving
from cached_session import CachedSession, PostgresOutbox
from cached_session.emulator import Emulator
from tests.postgres import Server
from tests.session.support import texts
from tests.test_web import (
    WORKERS,
    at_once,
    browser,
    dialogue,
    ends_well,
    over_all_workers,
    say,
    several,
)

FOLDER = ROOT / "examples" / "fleet"
FLEET = str(FOLDER)


@pytest.mark.processes
async def test_three_workers(emulator: Emulator, postgres: Server, tmp_path: Path) -> None:
    """Many conversations at once, one over all workers, runs at once on one: nothing goes wrong.

    Each turn sees all before it, whichever worker has it, and the server has everything once and
    in order.
    """
    url = postgres.with_tables()
    with serving(
        emulator.base_url,
        tmp_path / "log",
        app="fleet:app",
        directory=FLEET,
        workers=WORKERS,
        DATABASE_URL=url,
    ) as web:
        async with browser(web) as http:
            *told, (mixed, asked, _) = await asyncio.gather(
                several(http), over_all_workers(http), at_once(http)
            )
        ends_well(web)
    for conversations in told:
        for conversation, lines in conversations.items():
            assert texts(emulator.items(conversation)) == lines
    stored = texts(emulator.items(mixed))
    assert sorted(stored[2::2]) == sorted(asked)
    assert stored == dialogue(stored[::2])


@pytest.mark.processes
async def test_another_machine_has_the_turn(
    emulator: Emulator, client: AsyncOpenAI, postgres: Server, tmp_path: Path
) -> None:
    """While a run has a conversation on one machine, another one answers 409; after it, all of it.

    The other machine's key is another one, of the same account.
    """
    url = postgres.with_tables()
    outbox = PostgresOutbox(url, account="prod")
    settings = {"DATABASE_URL": url, "CHAT_WAIT": "0", "OPENAI_API_KEY": "sk-rotated"}
    with serving(
        emulator.base_url, tmp_path / "log", app="fleet:app", directory=FLEET, **settings
    ) as web:
        async with browser(web) as http:
            name = (await say(http, "one", None))["conversation_id"]
            session = CachedSession(conversation_id=name, openai_client=client, outbox=outbox)
            async with session, session.turn(wait=10):
                await session.add_items([{"role": "user", "content": "two"}])
                body = {"text": "three", "conversation_id": name}
                answer = await http.post("/chat", json=body)
                assert answer.status_code == 409
                assert answer.json()["error"] == "ConversationBusy"
                await session.flush()
            assert (await say(http, "three", name))["text"] == "Question 3: three"
        ends_well(web)
    assert not await outbox.aclose()
    stored = [*dialogue(["one"]), "two", "three", "Question 3: three"]
    assert texts(emulator.items(name)) == stored


@pytest.mark.processes
async def test_engine_that_is_away(emulator: Emulator, tmp_path: Path) -> None:
    """Without the engine a message is a 503 that says so, and nothing is stored anywhere."""
    nobody = "postgresql://app@127.0.0.1:1/agents"
    with serving(
        emulator.base_url, tmp_path / "log", app="fleet:app", directory=FLEET, DATABASE_URL=nobody
    ) as web:
        async with browser(web) as http:
            answer = await http.post("/chat", json={"text": "one"})
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.json()["error"] == "OutboxUnavailable"


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="no parser of YAML")
def test_compose_file() -> None:
    """The compose file names what is in the example's folder, and the database of its app."""
    yaml = importlib.import_module("yaml")
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]
    assert set(services) == {"postgres", "app"}
    build = services["app"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).exists()
    assert services["app"]["environment"]["DATABASE_URL"].endswith(
        f"@postgres/{services['postgres']['environment']['POSTGRES_DB']}"
    )
