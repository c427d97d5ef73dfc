"""Fixtures that several test packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import agentic_binary, agentic_server


@pytest.fixture(scope="session", name="agentic_server")
def _agentic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a running `agentic-api`."""
    if agentic_binary() is None:
        pytest.skip("agentic-server is not installed (pip install agentic-api)")
    with agentic_server(tmp_path_factory.mktemp("agentic")) as base_url:
        yield base_url
