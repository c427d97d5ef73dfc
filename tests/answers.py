"""A stand-in for a real model: `POST /v1/responses`, on an emulator's own server."""

from __future__ import annotations

import itertools
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cached_session.emulator import Emulator

SAMPLES = {"string": "ropes", "integer": 2, "number": 2.5, "boolean": True}


def answer_as_model(emulator: Emulator) -> list[dict[str, Any]]:
    """Makes an emulator answer model calls, too; returns the list that they are noted in.

    After a user's message it calls each tool that it was given, once, and thinks before; after
    the tools' outputs, or without tools, it says a sentence.
    """
    calls: list[dict[str, Any]] = []
    numbers = itertools.count(1)

    async def respond(request: Request) -> JSONResponse:
        body = json.loads(await request.body())
        calls.append(body)
        return JSONResponse(_response(body, next(numbers)))

    emulator.app.router.routes.insert(0, Route("/v1/responses", respond, methods=["POST"]))
    return calls


def _response(body: dict[str, Any], number: int) -> dict[str, Any]:
    given = body["input"]
    # Alone, the user's message may be sent as the plain text that it is.
    asked = isinstance(given, str) or given[-1].get("role") == "user"
    tools = body.get("tools") or []
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 0,
        "model": body["model"],
        "status": "completed",
        "output": _calls(tools, number) if asked and tools else [_sentence(number)],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2,
        },
    }


def _sentence(number: int) -> dict[str, Any]:
    return {
        "id": f"msg_{number:048x}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": f"Answer {number}.", "annotations": []}],
    }


def _calls(tools: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    thought = {"id": f"rs_{number:048x}", "type": "reasoning", "summary": []}
    return [thought] + [
        {
            "id": f"fc_{number:040x}{position:08x}",
            "type": "function_call",
            "call_id": f"call_{number}_{position}",
            "name": tool["name"],
            "arguments": json.dumps(
                {
                    name: SAMPLES[schema["type"]]
                    for name, schema in tool["parameters"]["properties"].items()
                }
            ),
            "status": "completed",
        }
        for position, tool in enumerate(tools)
    ]
