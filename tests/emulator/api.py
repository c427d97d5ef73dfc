"""A bare client of the Conversations API: JSON in, status and JSON out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx2


@dataclass
class Answer:
    """Status, headers and decoded body of one response."""

    status: int
    body: Any
    headers: httpx2.Headers


class Api:
    """Sends requests to one server, with a key unless told otherwise."""

    def __init__(self, base_url: str, name: str) -> None:
        self.name = name
        self.client = httpx2.Client(
            base_url=base_url, headers={"authorization": "Bearer key"}, trust_env=False, timeout=20
        )

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Answer:
        response = self.client.request(
            method,
            path.lstrip("/"),
            params=query,
            content=raw,
            json=body,
            headers=headers,
        )
        decoded = response.json() if response.content else None
        return Answer(response.status_code, decoded, response.headers)

    def conversation(self, *texts: str) -> str:
        """Makes a conversation with user messages and returns its id."""
        identifier: str = self.call("POST", "/conversations", {}).body["id"]
        if texts:
            self.append(identifier, *[user(text) for text in texts])
        return identifier

    def append(self, conversation: str, *items: dict[str, Any], **query: Any) -> Answer:
        return self.call(
            "POST", f"/conversations/{conversation}/items", {"items": list(items)}, **query
        )

    def texts(self, conversation: str, **query: Any) -> list[str]:
        """Returns the texts of a listing, in its order."""
        return [text_of(item) for item in self.list(conversation, **query).body["data"]]

    def list(self, conversation: str, **query: Any) -> Answer:
        return self.call("GET", f"/conversations/{conversation}/items", **query)


def user(text: str, **fields: Any) -> dict[str, Any]:
    """Returns a user message as a client sends it."""
    return {"type": "message", "role": "user", "content": text, **fields}


def text_of(item: dict[str, Any]) -> str:
    """Returns the text of a listed message."""
    text: str = item["content"][0]["text"]
    return text
