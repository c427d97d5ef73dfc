"""The pages that people read: their blocks, tables and links; and `python -m tests.pages PAGE`.

As a program it runs a page's Python blocks from top to bottom, in one namespace, as a reader
would. A block may await at its top level.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its text, and the line of the page where it begins."""

    language: str
    text: str
    line: int


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """A page's fenced blocks, of one language or all."""
    source = page.read_text(encoding="utf-8")
    found = [
        Block(match[1], match[2], source[: match.start(2)].count("\n") + 1)
        for match in _FENCE.finditer(source)
    ]
    return [block for block in found if language in (None, block.language)]


def links(page: Path) -> list[str]:
    """What a page links to, as it is written."""
    return _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    source = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", source, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def table_below(page: Path, heading: str) -> dict[str, str]:
    """The first table below a heading: what the first two cells of each row say, without ticks."""
    source = page.read_text(encoding="utf-8")
    below = source[source.index(f"\n{heading}\n") :]
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", below, re.MULTILINE)
    assert table is not None
    rows = [row.strip("|").split("|") for row in table[1].splitlines()]
    return {row[0].strip(" `"): row[1].strip(" `") for row in rows}


def run(page: Path) -> None:
    """Runs a page's Python blocks."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        # Empty lines before it, so that an error names the page's own line.
        source = "\n" * (block.line - 1) + block.text
        code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, namespace))
        else:
            exec(code, namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
