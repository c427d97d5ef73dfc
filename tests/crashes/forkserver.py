"""Forks the processes of the rounds: `python -m tests.crashes.forkserver`, told what by a pipe.

It imports everything once. It has one thread, no event loop and no outbox, so
that what it forks begins as a process does that was just started.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import selectors
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
from openai import AsyncOpenAI, OpenAIError

from cached_session import CachedSession, ConversationCache
from tests.campaigns.ablations import BY_NAME
from tests.crashes.plan import Work
from tests.crashes.worker import Life, policy, say_to


class Child:
    """A process that was forked, and what it says."""

    def __init__(self, work: Work, setting: dict[str, Any]) -> None:
        self.ended: float | None = None
        self._heard: list[bytes] = []
        reading, writing = os.pipe()
        self.pipe = reading
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _live(work, setting, writing)
        os.close(writing)
        self.dies_at = None if work.kill_after is None else time.monotonic() + work.kill_after

    def kill(self) -> None:
        """Kills it."""
        os.kill(self.pid, signal.SIGKILL)
        self.dies_at = None

    def hear(self) -> bool:
        """Takes in what it has said; False: it has ended."""
        data = os.read(self.pipe, 1 << 16)
        self._heard.append(data)
        if not data:
            self.ended = time.time()
        return bool(data)

    def report(self) -> dict[str, Any]:
        """What it said, and how it ended."""
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        # A line that it was killed in the middle of was not said.
        lines = b"".join(self._heard).split(b"\n")[:-1]
        said = [json.loads(line) for line in lines]
        return {"said": said, "end": _ending(status), "at": self.ended}


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return str(os.WEXITSTATUS(status))


def _live(work: Work, setting: dict[str, Any], writing: int) -> NoReturn:
    """The life of a child."""
    status = 1
    try:
        say = say_to(writing)
        if setting["ablation"] is not None:
            # For good: nothing undoes it before the process ends.
            BY_NAME[setting["ablation"]](pytest.MonkeyPatch())
        asyncio.run(Life(work, setting, say).run())
        status = 0
    except BaseException:
        say("failed", traceback.format_exc())
    finally:
        # Nothing of the parent's is to be finished here.
        os._exit(status)


def run(works: Sequence[Work], setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs processes at the same time, to their ends."""
    children = [Child(work, setting) for work in works]
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.pipe, selectors.EVENT_READ, child)
        while selector.get_map():
            deaths = [child.dies_at for child in children if child.dies_at is not None]
            left = None if not deaths else max(0.0, min(deaths) - time.monotonic())
            for key, _ in selector.select(left):
                if not key.data.hear():
                    key.data.dies_at = None
                    selector.unregister(key.fileobj)
            for child in children:
                if child.dies_at is not None and child.dies_at <= time.monotonic():
                    child.kill()
    return [child.report() for child in children]


async def _warm_up() -> None:
    # Loads what is loaded at a first request, to a port at which nobody listens.
    client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="key", max_retries=0)
    async with client:
        session = CachedSession(
            conversation_id="conv_0",
            openai_client=client,
            cache=ConversationCache(),
            retry=policy(random.Random(0)),
        )
        with contextlib.suppress(OpenAIError):
            await session.get_items()


def main() -> None:
    """Does what it is told, line by line, until there are no more."""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    os.environ["SSL_CERT_DIR"] = os.devnull
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    asyncio.run(_warm_up())
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1
    for line in sys.stdin:
        told = json.loads(line)
        works = [Work(**work) for work in told["works"]]
        sys.stdout.write(json.dumps(run(works, told["setting"])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
