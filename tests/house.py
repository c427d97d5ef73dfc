"""The house in figures: `python -m tests.house`.

Rooms are the entries of the package's first level, the emulator and the commands aside. Floors
are how many rooms stand upon each other by their imports, those for type checkers included. Paths
are the files of the product that run when something is done once: in them a reader has to look.
"""

from __future__ import annotations

import ast
import asyncio
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from openai import AsyncOpenAI

import cached_session
from cached_session import CachedSession, ConversationCache, RetryPolicy, SQLiteOutbox
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append

ROOT = Path(cached_session.__file__).parent
ANNEX = frozenset({"emulator", "commands", "__main__"})


def files() -> dict[str, Path]:
    """The product's files by their module's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ANNEX:
            found[".".join(part for part in (ROOT.name, *parts) if part != "__init__")] = path
    return found


def imports() -> dict[str, set[str]]:
    """Which module imports which."""
    known = files()
    edges: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports relatively"
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
                named = [one for one in modules if one in known] or [node.module or ""]
            else:
                continue
            edges[name].update(one for one in named if one in known and one != name)
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The sets of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        found, todo = set[str](), [*edges[start]]
        while todo:
            one = todo.pop()
            if one not in found:
                found.add(one)
                todo.extend(edges[one])
        return found

    reach = {name: reached(name) for name in edges}
    circle = {
        name: sorted(other for other in reach[name] if name in reach[other]) for name in edges
    }
    return [list(one) for one in {tuple(found) for found in circle.values() if found}]


def rooms(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Which room imports from which."""

    def room(module: str) -> str:
        return [*module.split("."), "__init__"][1]

    found: dict[str, set[str]] = {}
    for name, to in edges.items():
        found.setdefault(room(name), set()).update(
            room(one) for one in to if room(one) != room(name)
        )
    return found


def floors(edges: dict[str, set[str]]) -> int:
    """The longest way down through a graph without circles, in nodes."""

    assert not circles(edges)

    def height(name: str) -> int:
        return 1 + max(map(height, edges[name]), default=0)

    return max(map(height, edges))


@contextmanager
def watched() -> Iterator[set[str]]:
    """Notes the product's files in which a function is called meanwhile, in any thread."""
    found: set[str] = set()
    names = {str(path): name for name, path in files().items()}

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in names:
            found.add(names[frame.f_code.co_filename])

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # which ends it


async def paths() -> dict[str, set[str]]:
    """The files that run when something is done once, by what that is."""
    found = {}
    for outbox in (False, True):
        kept = ", with an outbox" if outbox else ""
        for what, work in WORKS.items():
            # What the outbox's thread and the sender do meanwhile is not always there.
            seen = [await _watch(work, outbox=outbox) for _ in range(12)]
            found[f"{what}{kept}"] = set.intersection(*seen)
    return found


async def _append(session: CachedSession, emulator: Emulator) -> None:
    lost = [Fault(FaultKind.RESET_AFTER_COMMIT)]
    emulator.faults = lambda request: lost.pop() if lost and is_append(request) else None
    await session.add_items([{"role": "user", "content": "lost"}])
    await session.flush()


async def _pop(session: CachedSession, _: Emulator) -> None:
    assert await session.pop_item() is not None


async def _read(session: CachedSession, _: Emulator) -> None:
    assert await session.get_items()


WORKS = {"an append whose answer is lost": _append, "a pop": _pop, "a held read": _read}


async def _watch(
    work: Callable[[CachedSession, Emulator], Awaitable[None]], *, outbox: bool
) -> set[str]:
    with Emulator() as emulator, tempfile.TemporaryDirectory() as folder:
        async with AsyncOpenAI(base_url=emulator.base_url, api_key="none") as client:
            # Made in the watch, and so is the outbox's thread.
            with watched() as found:
                log = SQLiteOutbox(Path(folder) / "outbox.db") if outbox else None
                session = CachedSession(
                    openai_client=client,
                    cache=ConversationCache(),
                    retry=RetryPolicy(initial_delay=0.001),
                    outbox=log,
                )
                await session.get_items()
                await session.add_items([{"role": "user", "content": "a"}])
                await session.flush()
                # What is held is held from a read on that has looked what others have done.
                await session.get_items()
                # What comes before does not count.
                found.clear()
                await work(session, emulator)
                done = set(found)
            await session.aclose()
            return done


def figures() -> dict[str, int]:
    """What there is of the house."""
    edges = imports()
    lines = {name: len(path.read_text().splitlines()) for name, path in files().items()}
    found = {
        "rooms": len(rooms(edges)),
        "floors": floors(rooms(edges)),
        "circles": len(circles(edges)),
        "files": len(lines),
        "lines": sum(lines.values()),
        "longest file": max(lines.values()),
    }
    ways = asyncio.run(paths())
    return {**found, **{f"files of {name}": len(way) for name, way in ways.items()}}


if __name__ == "__main__":
    for name, value in figures().items():
        sys.stdout.write(f"{name:56} {value}\n")
