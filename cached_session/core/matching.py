"""Whether a listed item is the one that was sent.

The server changes what it stores: it normalises content, adds fields, assigns
ids, and leaves contents out of a listing. So a listed item is compared by what
both sides show, and never by what only one of them has. Some servers rewrite
texts as well. So another text is no proof of another item: where type and role
are the same, it may be ours.

An answer to an append holds the items as they will be listed. Sent text and
answered text, side by side, tell which of a few known rewritings the server
does. Only what was shown counts, and of two explanations the weaker one: a
text that is taken for another one wrongly is a text that is lost.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from operator import add
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

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


# Fields that the server sets or rewrites; they say nothing about who sent an item.
_SERVER_FIELDS = frozenset({"id", "status", "created_at", "created_by", "object"})

# The types of parts that hold a text: a server may list another one of them than was sent.
_TEXT_TYPES = frozenset({"input_text", "output_text", "text", "refusal", "summary_text"})


class Match(Enum):
    """What a listed item is to a sent one."""

    IDENTICAL = auto()
    """It is that one: it has its id or its call id."""
    EQUAL = auto()
    """It reads the same. Another writer's equal item cannot be told from it."""
    UNCLEAR = auto()
    """It is that one, rewritten by the server, or another writer's."""
    OTHER = auto()
    """It is another one."""


def compare(
    sent: Mapping[str, Any], listed: Mapping[str, Any], rewriting: Rewriting = VERBATIM
) -> Match:
    """What a listed item is to a sent one.

    Tool items are compared by type and `call_id`, as the service keeps one
    call apart from another by it. An item that was sent under an id of its own
    and is listed under the same id is the same, whatever it holds: an item
    shared with another conversation keeps its original content.

    Args:
        sent: The item as it was sent.
        listed: The item as it is listed.
        rewriting: How the server is known to rewrite texts.
    """
    sent_id = sent.get("id")
    if sent_id is not None and sent_id == listed.get("id"):
        return Match.IDENTICAL
    if _type(sent) == "item_reference":
        # What it refers to is not known, and some servers give it a new id.
        return Match.UNCLEAR
    if _type(sent) != _type(listed):
        return Match.OTHER
    if sent.get("call_id") is not None:
        return Match.IDENTICAL if sent["call_id"] == listed.get("call_id") else Match.OTHER
    if _type(sent) == "message":
        if sent.get("role") != listed.get("role"):
            return Match.OTHER
        same = _same_content(sent.get("content"), listed.get("content"), rewriting)
    else:
        same = _agree(sent, listed, rewriting)
    return Match.EQUAL if same else Match.UNCLEAR


def _type(item: Mapping[str, Any]) -> Any:
    # An item without a type is a message (recorded), one with only an id a reference (spec).
    return item.get("type") or ("item_reference" if item.keys() == {"id"} else "message")


def _same_content(sent: Any, listed: Any, rewriting: Rewriting) -> bool:
    sent_parts, listed_parts = _parts(sent), _parts(listed)
    return len(sent_parts) == len(listed_parts) and all(
        _same_part(*pair, rewriting) for pair in zip(sent_parts, listed_parts, strict=True)
    )


def _parts(content: Any) -> list[Any]:
    # A string and a list of one text part are the same content (recorded: the
    # service turns the one into the other; some servers do not).
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return list(content)
    return [] if content is None else [content]


def _same_part(sent: Any, listed: Any, rewriting: Rewriting) -> bool:
    if not (isinstance(sent, Mapping) and isinstance(listed, Mapping)):
        return bool(sent == listed)
    sent_type, listed_type = sent.get("type"), listed.get("type")
    if sent_type in _TEXT_TYPES and listed_type in _TEXT_TYPES:
        key = _text_key(sent)
        return _same_value(sent.get(key), listed.get(key), rewriting)
    return sent_type == listed_type and _agree(sent, listed, rewriting)


def _text_key(part: Mapping[str, Any]) -> str:
    return "refusal" if "refusal" in part else "text"


def _same_value(sent: Any, listed: Any, rewriting: Rewriting) -> bool:
    if isinstance(sent, str) and isinstance(listed, str):
        return equal(sent, listed, rewriting)
    return bool(sent == listed)


def _agree(sent: Any, listed: Any, rewriting: Rewriting) -> bool:
    """Whether two values do not contradict each other in what both of them hold."""
    if isinstance(sent, Mapping) and isinstance(listed, Mapping):
        return all(
            _agree(value, listed[key], rewriting)
            for key, value in sent.items()
            if key in listed
            and key not in _SERVER_FIELDS
            # null is how a server spells "left out".
            and value is not None
            and listed[key] is not None
        )
    if isinstance(sent, list) and isinstance(listed, list):
        # A listing leaves whole lists out as empty ones (logprobs, results).
        return not listed or (
            len(sent) == len(listed)
            and all(_agree(*pair, rewriting) for pair in zip(sent, listed, strict=True))
        )
    return _same_value(sent, listed, rewriting)


def text_pairs(sent: dict[str, Any], listed: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of a message or a summary, as they were sent and as they were answered."""
    for name in ("content", "summary"):
        if not (sent.get(name) and listed.get(name)):
            continue
        parts = _parts(sent[name]), _parts(listed[name])
        if len(parts[0]) != len(parts[1]):
            continue
        for one, two in zip(*parts, strict=True):
            if isinstance(one, dict) and isinstance(two, dict):
                key = _text_key(one)
                texts = one.get(key), two.get(key)
                if isinstance(texts[0], str) and isinstance(texts[1], str):
                    yield texts[0], texts[1]


class Shape(NamedTuple):
    """How a server lists an item, as far as that is the same for every copy of it.

    Attributes:
        digest: Of its contents.
        plain: Whether it is a message of texts alone.
    """

    digest: str
    plain: bool


def shape(listed: Mapping[str, Any]) -> Shape:
    """The shape of a listed item."""
    plain = _type(listed) == "message"
    contents: Any
    if plain:
        contents = []
        for part in _parts(listed.get("content")):
            text = isinstance(part, Mapping) and part.get("type") in _TEXT_TYPES
            plain = plain and text
            contents.append(part.get(_text_key(part)) if text else part)
        contents = [listed.get("role"), contents]
    else:
        contents = {key: value for key, value in listed.items() if key not in _SERVER_FIELDS}
    encoded = json.dumps(contents, sort_keys=True, separators=(",", ":")).encode()
    return Shape(hashlib.blake2b(encoded, digest_size=16).hexdigest(), plain)


class Run(NamedTuple):
    """A beginning of what was sent, as it may stand together in a listing.

    Attributes:
        start: Where it begins.
        certain: How many items, from the first on, are the ones that were sent.
        possible: How many may be.
    """

    start: int
    certain: int
    possible: int


def runs(wanted: int, length: int, match: Callable[[int, int], Match]) -> Iterator[Run]:
    """Finds every beginning of what was sent that may stand together in a listing.

    A batch stands in one piece. So an item that is known by its id or call id
    proves that those before it are the ones that were sent before it.

    Args:
        wanted: How many items were sent.
        length: How many items the listing has.
        match: What the item at a position of the listing (second) is to one
            that was sent (first).
    """
    for start in range(length):
        certain = possible = 0
        while possible < wanted and start + possible < length:
            found = match(possible, start + possible)
            if found is Match.OTHER:
                break
            if found is Match.IDENTICAL or (found is Match.EQUAL and certain == possible):
                certain = possible + 1
            possible += 1
        if possible:
            yield Run(start, certain, possible)


class Requests(NamedTuple):
    """Requests of the same items, and where a listing shows what they may have stored.

    Attributes:
        whole: How many items each of them sent.
        times: How many of them there are.
        found: Where the items stand, or their beginning: the start, and how many of them.
        wanted: The same, of what may be the one that is to stay.
        in_part: Whether one of them may have stored its first items alone.
    """

    whole: int
    times: int
    found: Mapping[int, int]
    wanted: Mapping[int, int] = MappingProxyType({})
    in_part: bool = False


class Piece(NamedTuple):
    """Items of a listing that one request has stored.

    Attributes:
        start: Where they begin.
        end: Where they end.
        number: Of which requests it is one.
        wanted: Whether it is the one that is to stay.
    """

    start: int
    end: int
    number: int
    wanted: bool


class Explanation(NamedTuple):
    """Which requests have stored what a listing shows.

    Attributes:
        pieces: What each has stored.
        come: Of how many of each requests it is certain that they have stored something: without
            them less would be explained. Where one or another one may have, neither is certain.
    """

    pieces: list[Piece]
    come: list[int]


_Way: TypeAlias = tuple[tuple[int, ...], tuple[Piece, ...]]

# How many ways to explain what stands before a place are followed, the best ones; and of how many
# requests that look alike it is asked which ones are certain. There are more only where many that
# were given up on sent the same few words.
_WAYS: Final = 32
_ALIKE: Final = 8


def explain(requests: Sequence[Requests]) -> Explanation:
    """Finds which requests have stored what a listing shows.

    Each of them has stored its items once at most, in one piece. Of all explanations it is the one
    that leaves the fewest items unexplained: whoever takes the longest pieces first may take parts
    of two of them for a third one, and leaves the rest of both behind. Of several it is the one of
    the fewest pieces, then of the fewest parts, then the one with the most of what is wanted, and
    that as early as can be.

    Args:
        requests: All that may have stored something, each with items of its own.
    """
    pieces: list[Piece] = []
    come = [0] * len(requests)
    for numbers in _alike(requests):
        some = {number: requests[number] for number in numbers}
        best = _best(some)
        pieces += best
        if len(some) > _ALIKE:
            continue
        for number in {piece.number for piece in best}:
            count = sum(piece.number == number for piece in best)
            # One that looks like no other one stands for itself.
            while count and len(some) > 1:
                fewer = {**some, number: some[number]._replace(times=count - 1)}
                if _explained(_best(fewer)) < _explained(best):
                    break
                count -= 1
            come[number] = count
    return Explanation(sorted(pieces), come)


def _alike(requests: Sequence[Requests]) -> list[list[int]]:
    """Those of which one may have stored what another one may have, by their numbers."""
    alike: list[tuple[set[int], list[int]]] = []
    for number, (_, _, found, wanted, _) in enumerate(requests):
        spans = (*found.items(), *wanted.items())
        places = {place for start, size in spans for place in range(start, start + size)}
        if not places:
            continue
        joined, apart = [number], []
        for those, numbers in alike:
            if places.isdisjoint(those):
                apart.append((those, numbers))
            else:
                places |= those
                joined += numbers
        alike = [*apart, (places, joined)]
    return [numbers for _, numbers in alike]


def _best(requests: Mapping[int, Requests]) -> tuple[Piece, ...]:
    """The best explanation by some requests."""
    begin: defaultdict[int, list[Piece]] = defaultdict(list)
    for piece in _pieces(requests):
        begin[piece.start].append(piece)
    places = {number: place for place, number in enumerate(requests)}
    # By how many of each are used up, and at last whether what is wanted was found.
    ways: defaultdict[int, dict[tuple[int, ...], _Way]] = defaultdict(dict)
    first = min(begin, default=0)
    ways[first][(0,) * (len(requests) + 1)] = (0,) * 5, ()
    last = max((piece.end for here in begin.values() for piece in here), default=0)
    for place in range(first, last):
        best = heapq.nlargest(_WAYS, ways.pop(place, {}).items(), key=lambda way: way[1][0])
        for used, (score, pieces) in best:
            _reach(ways[place + 1], used, (score, pieces))
            for piece in begin[place]:
                number = places[piece.number]
                if used[number] < requests[piece.number].times and not (piece.wanted and used[-1]):
                    more = [*used]
                    more[number] += 1
                    more[-1] += piece.wanted
                    better = tuple(map(add, score, _score(piece, requests[piece.number])))
                    _reach(ways[piece.end], tuple(more), (better, (*pieces, piece)))
    return max(ways[last].values(), key=lambda way: way[0])[1]


def _pieces(requests: Mapping[int, Requests]) -> Iterator[Piece]:
    """All that each of some requests may have stored."""
    for number, (whole, _, found, wanted, in_part) in requests.items():
        for start, size in found.items():
            for part in range(1 if in_part else whole, size + 1):
                yield Piece(start, start + part, number, wanted=False)
        for start, size in wanted.items():
            for part in range(1, size + 1):
                yield Piece(start, start + part, number, wanted=True)


def _score(piece: Piece, requests: Requests) -> tuple[int, ...]:
    size = piece.end - piece.start
    part = size < requests.whole
    return size, -1, -part, *((size, -piece.start) if piece.wanted else (0, 0))


def _reach(ways: dict[tuple[int, ...], _Way], used: tuple[int, ...], way: _Way) -> None:
    if used not in ways or way[0] > ways[used][0]:
        ways[used] = way


def _explained(pieces: Sequence[Piece]) -> int:
    return sum(piece.end - piece.start for piece in pieces)
