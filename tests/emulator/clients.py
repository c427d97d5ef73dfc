"""Clients for the emulator that take nothing from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from openai import AsyncOpenAI, OpenAI

from cached_session.emulator import Emulator


@contextmanager
def connect(emulator: Emulator, **options: Any) -> Iterator[OpenAI]:
    """A client that gives up on nothing by itself and retries nothing unless told to."""
    http = httpx2.Client(trust_env=False)
    settings = {"max_retries": 0, "timeout": 60, **options}
    with OpenAI(base_url=emulator.base_url, api_key="key", http_client=http, **settings) as client:
        yield client


def open_client(emulator: Emulator) -> AsyncOpenAI:
    """An asynchronous client, to be used with `async with`."""
    http = httpx2.AsyncClient(trust_env=False)
    return AsyncOpenAI(base_url=emulator.base_url, api_key="key", max_retries=0, http_client=http)


def post_conversation(base_url: str) -> httpx2.Response:
    """Makes a conversation without the openai package."""
    return httpx2.post(
        f"{base_url}/conversations",
        headers={"authorization": "Bearer key"},
        timeout=60,
        trust_env=False,
    )


def causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
