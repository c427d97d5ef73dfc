"""What our session is held against beside other sessions: what nobody can do without."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from benchmarks.payload import structural_copy
from benchmarks.sites import BATCH, append, create

# "A limit on the number of objects to be returned", 1 to 100. Source: as for `BATCH`.
PAGE = 100

Record = Callable[[list[Any]], Awaitable[None]]


class Bare(OpenAIConversationsSession):
    """Sends the requests that there have to be, and does nothing else.

    Args:
        client: The client.
        conversation_id: An existing conversation; None: the first call makes one.
    """

    def __init__(self, client: AsyncOpenAI, conversation_id: str | None = None) -> None:
        super().__init__(conversation_id=conversation_id, openai_client=client)
        self._client = client
        self._id = conversation_id

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Full pages, one after the other, of which no item is looked at."""
        query: dict[str, object] = {"order": "asc", "limit": min(limit or PAGE, PAGE)}
        path = f"/conversations/{await self._made()}/items"
        read: list[Any] = []
        more = True
        while more and (limit is None or len(read) < limit):
            answer = await self._client.get(
                path, cast_to=httpx2.Response, options={"params": query}
            )
            page = json.loads(answer.content)
            read += page["data"]
            more, query["after"] = page["has_more"], page["last_id"]
        return read

    async def add_items(self, items: list[Any]) -> None:
        """Full batches, one after the other."""
        conversation_id = await self._made()
        for start in range(0, len(items), BATCH):
            await append(self._client, conversation_id, items[start : start + BATCH])

    async def _made(self) -> str:
        if self._id is None:
            self.session_id = self._id = await create(self._client)
        return self._id


async def _nothing(_: list[Any]) -> None:
    """Records nothing."""


class Played(OpenAIConversationsSession):
    """Plays back what another session of the same loop has left.

    Args:
        history: That session's items, in the server's shape.
        client: The client.
        conversation_id: The conversation.
        record: Takes what is appended.
    """

    def __init__(
        self,
        history: Sequence[Any],
        client: AsyncOpenAI,
        conversation_id: str,
        record: Record = _nothing,
    ) -> None:
        super().__init__(conversation_id=conversation_id, openai_client=client)
        self._history = history
        self._record = record
        self._added = 0

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """What there was at this point; the caller's own copy."""
        return [structural_copy(item) for item in self._history[: self._added]]

    async def add_items(self, items: list[Any]) -> None:
        """On in the history, when they are recorded."""
        await self._record(items)
        self._added += len(items)


class Table:
    """A table of SQLite that records appends, by one bare commit each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE items (seq INTEGER PRIMARY KEY, data BLOB)")

    async def record(self, items: list[Any]) -> None:
        """One commit, in another thread, as its wait for the disk is nobody else's."""
        await asyncio.to_thread(self._commit, [json.dumps(item).encode() for item in items])

    def _commit(self, items: list[bytes]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO items (data) VALUES (?)", zip(items))
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
