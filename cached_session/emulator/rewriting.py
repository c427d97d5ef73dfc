"""Ways in which other servers rewrite the texts that they store."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

__all__ = ["REWRITES", "rewritten"]

_CUT: Final = 100
_EMAIL: Final = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")

REWRITES: Final[Mapping[str, Callable[[str], Any]]] = MappingProxyType(
    {
        "nul": lambda text: text.replace("\0", ""),
        "crlf": lambda text: text.replace("\r\n", "\n").replace("\r", "\n"),
        "nfc": lambda text: unicodedata.normalize("NFC", text),
        "trim": str.strip,
        "redact": lambda text: _EMAIL.sub("[redacted]", text),
        "cut": lambda text: text[:_CUT],
        "nest": lambda text: {"value": text},
    }
)
"""What becomes of a text, by the name of the habit; they are applied in this order."""


def rewritten(content: Any, kinds: frozenset[str]) -> Any:
    """Returns the content of a message, or the summary of a reasoning item, as it is stored.

    Args:
        content: A text, or a list of parts; it is not changed.
        kinds: Names from ``REWRITES``.
    """
    if isinstance(content, str):
        text: Any = content
        for kind, rewrite in REWRITES.items():
            if kind in kinds:
                text = rewrite(text)
        return text
    if isinstance(content, list):
        return [
            {**part, "text": rewritten(part["text"], kinds)}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
    return content
