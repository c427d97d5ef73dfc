"""How the package is built: in few rooms, one upon the other, and without a circle."""

from __future__ import annotations

import pytest

from tests.house import circles, floors, imports, paths, rooms

# How many files a path may run through: today's number, and a few that the outbox's thread
# may come by meanwhile. It may only fall.
FILES = {
    "an append whose answer is lost": 23,
    "a pop": 20,
    "a held read": 14,
    "an append whose answer is lost, with an outbox": 35,
    "a pop, with an outbox": 33,
    "a held read, with an outbox": 20,
}


def test_rooms() -> None:
    """The package's first level has at most ten entries, on at most eight floors."""
    found = rooms(imports())
    assert len(found) <= 10, sorted(found)
    assert floors(found) <= 8


def test_no_circle() -> None:
    """No module is reached by its own imports, those for type checkers included."""
    assert circles(imports()) == []


def test_a_circle_is_noticed() -> None:
    """Modules that import each other are found, whichever way leads round."""
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str]()}
    assert circles(edges) == [["a", "b", "c"]]
    assert floors({"a": {"b"}, "b": {"d"}, "d": set()}) == 3


@pytest.mark.campaign
async def test_ways() -> None:
    """What is done once runs through no more files than it did before."""
    found = await paths()
    assert found.keys() == FILES.keys()
    for name, files in found.items():
        if len(files) > FILES[name]:
            pytest.fail(f"{name} runs through {len(files)} files: {sorted(files)}")
