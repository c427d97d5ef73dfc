"""The emulator as the client of another language sees it: openai-node, from the npm registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cached_session.emulator import Emulator

FOLDER = Path(__file__).parents[2] / ".venv" / "node" / "node_modules"
MODULES = Path(os.environ.get("NODE_PATH") or FOLDER)
SCRIPT = Path(__file__).with_name("openai_node.cjs")


def missing() -> str | None:
    """Why openai-node cannot be run here; None: it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (MODULES / "openai").is_dir():
        return "npm's package openai is not installed; `make test-processes` installs it if it can"
    return None


@pytest.mark.processes
def test_openai_node(tell: Callable[[str], None]) -> None:
    """openai-node makes, fills, pages and deletes a conversation, and understands the errors."""
    if (why := missing()) is not None:
        tell(f"NOT RUN, the emulator with openai-node: {why}")
        pytest.skip(why)
    with Emulator() as emulator:
        done = subprocess.run(
            ["node", str(SCRIPT)],
            env={
                "PATH": os.environ["PATH"],
                "NODE_PATH": str(MODULES),
                "OPENAI_BASE_URL": emulator.base_url,
                "OPENAI_API_KEY": "anything",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen.pop("all") == [str(number) for number in range(41)]
    assert seen == {
        "made": ["conversation", "node"],
        "retrieved": True,
        "updated": {"a": "b"},
        "page": [15, True, "0"],
        "next": [15, "15"],
        "item": ["message", "completed", True],
        "item_deleted": True,
        "errors": [
            ["NotFoundError", 404, None, None],
            ["BadRequestError", 400, "integer_above_max_value", "limit"],
            ["NotFoundError", 404, None, "after"],
            ["BadRequestError", 400, "invalid_value", "items[0].id"],
            ["NotFoundError", 404, None, None],
        ],
        "deleted": {"id": True, "object": "conversation.deleted", "deleted": True},
    }
