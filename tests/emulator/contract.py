"""What the modules of the contract suite share: on which servers a case runs, and refusals."""

from __future__ import annotations

from typing import Any

import pytest


def on_both(*, agentic_differs: str | None = None) -> pytest.MarkDecorator:
    """Runs a case on both servers; a known difference of `agentic-api` is expected to stay."""
    marks = (
        [pytest.mark.xfail(reason=agentic_differs, raises=AssertionError, strict=True)]
        if agentic_differs
        else []
    )
    return pytest.mark.parametrize(
        "api",
        [
            pytest.param("emulator_api", id="emulator"),
            pytest.param("agentic_api", id="agentic-api", marks=marks),
        ],
        indirect=True,
    )


def refusal(message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The error envelope as recorded."""
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        }
    }
