"""What answers have shown of the way in which a server rewrites texts.

An answer to an append holds the items as they will be listed. Sent text and
answered text, side by side, tell which of a few known rewritings the server
does. Only what was shown counts, and of two explanations the weaker one: a
text that is taken for another one wrongly is a text that is lost.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

Rewriting: TypeAlias = frozenset[str]
"""Names of the known rewritings that a server does."""

VERBATIM: Final[Rewriting] = frozenset()

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SPACE: Final = " \t\n\r\f\v"

# In the order in which they are applied. Of two that do the same to a text the
# weaker one comes first.
_KINDS: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "no nul": lambda text: text.replace("\0", ""),
        "nul replaced": lambda text: text.replace("\0", "\ufffd"),
        "no controls": lambda text: _CONTROLS.sub("", text),
        "crlf": lambda text: text.replace("\r\n", "\n"),
        "cr": lambda text: text.replace("\r", "\n"),
        "nfc": lambda text: unicodedata.normalize("NFC", text),
        "nfd": lambda text: unicodedata.normalize("NFD", text),
        "nfkc": lambda text: unicodedata.normalize("NFKC", text),
        "nfkd": lambda text: unicodedata.normalize("NFKD", text),
        "no mark": lambda text: text.removeprefix("\ufeff"),
        "right": lambda text: text.rstrip(_SPACE),
        "left": lambda text: text.lstrip(_SPACE),
        "all right": str.rstrip,
        "all left": str.lstrip,
    }
)

# How many rewritings of one text are told apart.
_MOST: Final = 6

# Texts that are longer are not looked at: each try takes its time.
_LONGEST: Final = 1 << 16


def applied(rewriting: Rewriting, text: str) -> str:
    """A text as a server lists it that does so."""
    if rewriting:
        for name, rewrite in _KINDS.items():
            if name in rewriting:
                text = rewrite(text)
    return text


def equal(sent: str, listed: str, rewriting: Rewriting) -> bool:
    """Whether two texts are one under a rewriting."""
    # On both sides: in which order the server does what it does is not known.
    return sent == listed or (
        bool(rewriting) and applied(rewriting, sent) == applied(rewriting, listed)
    )


def learned(rewriting: Rewriting, pairs: Iterable[tuple[str, str]]) -> Rewriting:
    """What is known of a server after an answer.

    Args:
        rewriting: What was known before.
        pairs: Sent and answered texts.

    Returns:
        As little as explains the answer; nothing where it contradicts what was
        known, and what was known where the list of rewritings cannot explain it.
    """
    for sent, listed in pairs:
        if max(len(sent), len(listed)) > _LONGEST or applied(rewriting, sent) == listed:
            continue
        if sent == listed:
            rewriting = VERBATIM
            continue
        changing, text = [], sent
        for name, rewrite in _KINDS.items():
            before, text = text, rewrite(text)
            if text != before or rewrite(sent) != sent:
                changing.append(name)
        more = _least(changing, sent, listed, rewriting)
        anew = _least(changing, sent, listed, VERBATIM) if more is None else None
        if more is not None:
            rewriting |= more
        elif anew is not None:
            rewriting = anew
    return rewriting


def _least(names: list[str], sent: str, listed: str, known: Rewriting) -> Rewriting | None:
    for count in range(1, _MOST + 1):
        for chosen in itertools.combinations(names, count):
            if applied(known.union(chosen), sent) == listed:
                return frozenset(chosen)
    return None
