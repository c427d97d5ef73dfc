"""Where the processes come from, for all tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.crashes.nursery import Nursery


@pytest.fixture(scope="session", name="nursery")
def _nursery() -> Iterator[Nursery]:
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked here")
    with Nursery() as nursery:
        yield nursery
