"""What the tests of sessions share: clients, items, another writer, and the request log."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session.emulator import Emulator, Request

PATIENCE = 20.0
"""Seconds after which a test gives up on something that should have happened at once."""

KEY = {"authorization": "Bearer key"}


def clean_environment(patch: pytest.MonkeyPatch) -> None:
    """Takes from the environment what openai clients would read from it."""
    for name in ("BASE_URL", "API_KEY", "ORG_ID", "PROJECT_ID", "CUSTOM_HEADERS", "ADMIN_KEY"):
        patch.delenv(f"OPENAI_{name}", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, "127.0.0.1")
    # Nothing here speaks TLS, and reading the certificates takes 25 ms a client.
    patch.delenv("SSL_CERT_FILE", raising=False)
    patch.setenv("SSL_CERT_DIR", os.devnull)


def new_client(emulator: Emulator, api_key: str = "key", **options: Any) -> AsyncOpenAI:
    """A client as users make it, short of its own retries, which would blur request counts."""
    settings = {"max_retries": 0, "timeout": PATIENCE, **options}
    return AsyncOpenAI(base_url=emulator.base_url, api_key=api_key, **settings)


def user(text: str) -> Any:
    """A user's message as the Runner sends it."""
    return {"role": "user", "content": text}


def users(*texts: str) -> list[Any]:
    return [user(text) for text in texts]


def numbered(start: int, stop: int) -> list[Any]:
    """Messages with the numbers from `start` to before `stop`."""
    return [user(str(number)) for number in range(start, stop)]


def texts(items: list[Any]) -> list[str]:
    """The texts of listed messages."""
    return [item["content"][0]["text"] for item in items]


class Elsewhere:
    """Another process's writer: it changes the server, past every session and the request log."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def conversation(self, *messages: str) -> str:
        """Makes a conversation and returns its id."""
        made = self._call("POST", "/v1/conversations")
        if messages:
            self.append(made["id"], *messages)
        return str(made["id"])

    def append(self, conversation: str, *messages: str) -> None:
        for start in range(0, len(messages), 20):
            body = {"items": users(*messages[start : start + 20])}
            self._call("POST", f"/v1/conversations/{conversation}/items", body)

    def remove(self, conversation: str, position: int) -> str:
        """Removes the item at a position of the listing, oldest first; returns its text."""
        item = self._emulator.items(conversation)[position]
        self._call("DELETE", f"/v1/conversations/{conversation}/items/{item['id']}")
        return texts([item])[0]

    def delete(self, conversation: str) -> None:
        """Deletes the conversation."""
        self._call("DELETE", f"/v1/conversations/{conversation}")

    def _call(self, method: str, path: str, body: object = None) -> Any:
        content = json.dumps({} if body is None else body).encode()
        response = self._emulator.service.handle(Request.parse(method, path, KEY, content))
        assert response.status == 200, response.body
        return response.json()


def sent(emulator: Emulator) -> list[str]:
    """The requests since the last call, such as "POST conversation" or "GET items"."""
    entries = emulator.requests
    emulator.clear_log()
    # By the number of parts in /v1/conversations/{id}/items/{id}.
    names = {2: "conversation", 3: "conversation", 4: "items", 5: "item"}
    return [f"{entry.method} {names[entry.path.count('/')]}" for entry in entries]


class Gate:
    """Stands in for the emulator's `sleep`, so that a test holds answers and lets them go.

    It lets everything through until `hold` is called.
    """

    def __init__(self) -> None:
        self._closed = False
        self._skip = 0
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._arrived = threading.Semaphore(0)
        self._lock = threading.Lock()

    async def sleep(self, _seconds: float) -> None:
        opened = asyncio.Event()
        with self._lock:
            if not self._closed:
                return
            if self._skip:
                self._skip -= 1
                return
            self._waiting.append((asyncio.get_running_loop(), opened))
        self._arrived.release()
        await opened.wait()

    def hold(self, *, skip: int = 0) -> None:
        """Holds every wait from now on, but for the first `skip`."""
        with self._lock:
            self._closed, self._skip = True, skip

    def open(self) -> None:
        """Lets everybody through, now and from now on."""
        with self._lock:
            self._closed = False
            waiting, self._waiting = self._waiting, []
        for loop, opened in waiting:
            loop.call_soon_threadsafe(opened.set)

    async def arrived(self) -> None:
        """Returns when somebody waits at the gate."""
        came = await asyncio.to_thread(self._arrived.acquire, timeout=PATIENCE)
        assert came, "nobody came to the gate"


def in_threads(*works: Callable[[], None]) -> None:
    """Does each work in a thread of its own, to its end; raises what the first one raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread waits for something that does not come"
    if errors:
        raise errors[0]
