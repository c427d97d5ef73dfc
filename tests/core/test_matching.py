"""Whether a listed item is the one that was sent."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cached_session.core.matching import Match, Piece, Requests, compare, explain, learned, runs
from cached_session.emulator import Habits
from tests.core.strategies import (
    calls,
    habits,
    items,
    listed,
    message,
    messages,
    outputs,
    reordered,
    words,
)
from tests.emulator.samples import INPUT_TYPES, OUTPUT_TYPES, sample


def same(sent: dict[str, Any], shown: dict[str, Any]) -> bool:
    """Whether a listed item is taken for the one that was sent."""
    return compare(sent, shown) in (Match.IDENTICAL, Match.EQUAL)


@given(items, habits)
def test_what_a_server_makes_of_an_item(item: dict[str, Any], server: Habits) -> None:
    """An item is the same as what a server lists of it, whatever it adds, changes or leaves out."""
    (shown,) = listed([item], server)
    assert same(item, shown)
    assert same(item, reordered(shown))
    assert same(reordered(item), shown)


@pytest.mark.parametrize("whole", [False, True], ids=["least", "whole"])
@pytest.mark.parametrize(
    "annotation",
    [kind for kind in [*INPUT_TYPES, *OUTPUT_TYPES] if kind.__name__ != "ItemReference"],
    ids=lambda kind: kind.__name__,
)
def test_every_type(annotation: Any, whole: bool) -> None:
    """An item of any type of the openai package is the same as what a listing shows of it."""
    item: dict[str, Any] = sample(annotation, whole=whole)
    item.pop("id", None)
    if item.get("role") == "unknown":
        item["role"] = "developer" if item["type"] == "additional_tools" else "user"
    (shown,) = listed([item])
    assert same(item, shown)


@given(items, st.sampled_from(["created_at", "created_by", "status", "id", "new_field"]), words)
def test_fields_that_only_the_server_has(item: dict[str, Any], name: str, value: str) -> None:
    """A field that the server adds or sets does not tell an item from itself."""
    (shown,) = listed([item])
    assert same(item, {**shown, name: value})


@given(words, words, st.booleans())
def test_other_text(one: str, two: str, as_parts: bool) -> None:
    """Messages with different texts differ, and with the same text are the same."""
    part = {"type": "input_text", "text": one}
    sent = {"role": "user", "content": [part] if as_parts else one}
    (shown,) = listed([message(two)])
    assert same(sent, shown) == (one == two)


@given(messages, st.sampled_from(["user", "assistant", "system", "developer"]))
def test_other_role(item: dict[str, Any], role: str) -> None:
    """Messages of different roles differ, whatever they say."""
    (shown,) = listed([item])
    assert same(item, {**shown, "role": role}) == (item["role"] == role)


@given(st.lists(words, min_size=1, max_size=4), st.integers(0, 3))
def test_other_number_of_parts(contents: list[str], dropped: int) -> None:
    """A message that lacks a part, or has one more, is another message."""
    assume(dropped < len(contents))
    content = [{"type": "input_text", "text": text} for text in contents]
    sent = {"role": "user", "content": content}
    (shown,) = listed([sent])
    fewer = [part for place, part in enumerate(shown["content"]) if place != dropped]
    assert not same(sent, {**shown, "content": fewer})
    assert not same(sent, {**shown, "content": [*shown["content"], content[0]]})


@given(items, items)
def test_other_type(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Items of different types differ, with the same call id too."""
    assume(one.get("type", "message") != two.get("type", "message"))
    (shown,) = listed([two])
    assert not same(one, shown)


@given(st.tuples(calls, calls) | st.tuples(outputs, outputs))
def test_tool_items_go_by_call_id(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Calls are the same by their call id, and so are outputs, whatever else they hold."""
    one, two = pair
    (shown,) = listed([two])
    assert same(one, shown) == (one["call_id"] == two["call_id"])


def test_call_and_output_differ() -> None:
    """A call and its output have one call id and are two items."""
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "{}"}
    shown_call, shown_output = listed([call, output])
    assert same(call, shown_call)
    assert same(output, shown_output)
    assert not same(call, shown_output)
    assert not same(output, shown_call)


def test_images_and_files_by_what_is_shown() -> None:
    """Images whose address a listing leaves out are compared by the rest, files by their name."""
    image = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}
    (shown,) = listed([{"role": "user", "content": [image]}])
    assert "image_url" not in shown["content"][0]
    assert same({"role": "user", "content": [image]}, shown)
    assert not same({"role": "user", "content": [{**image, "detail": "high"}]}, shown)
    one, two = ({"type": "input_file", "filename": name, "file_data": "x"} for name in "ab")
    (shown,) = listed([{"role": "user", "content": [one]}])
    assert same({"role": "user", "content": [one]}, shown)
    assert not same({"role": "user", "content": [two]}, shown)


def test_reasoning_without_its_encrypted_content() -> None:
    """Reasoning is recognised although a listing leaves its encrypted content out."""
    summary = [{"type": "summary_text", "text": "hm"}]
    sent = {"type": "reasoning", "summary": summary, "encrypted_content": "sealed"}
    (shown,) = listed([sent])
    assert "encrypted_content" not in shown
    assert same(sent, shown)
    other = [{"type": "summary_text", "text": "oh"}]
    assert not same({**sent, "summary": other}, shown)


def test_own_id_counts_before_everything() -> None:
    """An item under an id of its own is the same, though the server shows another content."""
    (shown,) = listed([{"id": "msg_1", **message("the original")}])
    assert same({"id": "msg_1", **message("sent later")}, shown)
    assert not same({"id": "msg_2", **message("sent later")}, shown)
    assert same({"type": "item_reference", "id": "msg_1"}, shown)
    assert not same({"type": "item_reference", "id": "msg_2"}, shown)


letters = st.lists(st.sampled_from("abc"), max_size=8)


SHOWN: dict[str | None, dict[str, Any] | None] = {
    None: None,
    **{text: listed([message(text)])[0] for text in "abcxyz"},
}


def _run(wanted: list[str], standing: list[str | None]) -> tuple[int, int]:
    shown = [SHOWN[text] for text in standing]

    def match(place: int, position: int) -> Match:
        listed = shown[position]
        return Match.OTHER if listed is None else compare(message(wanted[place]), listed)

    may = {run.start: run.certain for run in runs(len(wanted), len(shown), match) if run.certain}
    pieces, _ = explain([Requests(len(wanted), 1, {}, wanted=may, in_part=True)])
    return (pieces[0].start, pieces[0].end - pieces[0].start) if pieces else (0, 0)


@given(letters, st.lists(st.sampled_from([*"abc", None]), max_size=10))
@example(list("ab"), list("aab"))
@example(list("aa"), ["a", None, "a", "a"])
def test_longest_run(wanted: list[str], standing: list[str | None]) -> None:
    """The run that is found is the longest beginning that stands together, and the first such."""
    start, count = _run(wanted, standing)
    fits = {
        (begin, length)
        for length in range(1, len(wanted) + 1)
        for begin in range(len(standing) - length + 1)
        if standing[begin : begin + length] == wanted[:length]
    }
    if not fits:
        assert count == 0
    else:
        longest = max(length for _, length in fits)
        assert (start, count) == (min(begin for begin, size in fits if size == longest), longest)


@given(letters, st.lists(st.sampled_from("xyz"), max_size=3), st.lists(st.sampled_from("xyz")))
def test_among_other_writers(wanted: list[str], before: list[str], after: list[str]) -> None:
    """A batch is found whole between other writers' items."""
    start, count = _run(wanted, [*before, *wanted, *after])
    assert count == len(wanted)
    assert start == (len(before) if wanted else 0)


@given(letters, st.integers(0, 8), st.lists(st.sampled_from("xyz"), max_size=3))
def test_applied_in_part(wanted: list[str], landed: int, after: list[str]) -> None:
    """Of a batch that was applied in part, the first items are found."""
    landed = min(landed, len(wanted))
    assert _run(wanted, [*wanted[:landed], *after])[1] == landed


@given(letters)
def test_known_items_are_no_part_of_it(wanted: list[str]) -> None:
    """Items that are known to be others' are never taken for ours, however equal."""
    assert _run(wanted, [None] * len(wanted))[1] == 0


@given(words, words)
def test_another_text_may_be_ours(one: str, two: str) -> None:
    """Of the same type and role, an item with another text is ours rewritten, or a stranger's."""
    assume(one != two)
    (shown,) = listed([message(two)])
    assert compare(message(one), shown) is Match.UNCLEAR
    assert compare({**message(one), "role": "assistant"}, shown) is Match.OTHER
    nested = {**shown, "content": [{"type": "input_text", "text": {"value": one}}]}
    assert compare(message(one), nested) is Match.UNCLEAR


def _standing(sent: str, shown: str, *, in_part: bool) -> dict[int, int]:
    """Where the items stand, or their beginning."""
    found = {}
    for start in range(len(shown)):
        pairs = zip(sent, shown[start:], strict=False)
        size = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if size == len(sent) or (in_part and size):
            found[start] = size
    return found


def _most(shown: str, left: Counter[str], wanted: str | None) -> int:
    """How many items can be explained, by trying all there is."""
    if not shown:
        return 0
    best = _most(shown[1:], left, wanted)
    for sent in [sent for sent in left if left[sent]]:
        sizes = range(1, len(sent) + 1) if sent == wanted else [len(sent)]
        for size in sizes:
            if shown[:size] == sent[:size]:
                rest = _most(shown[size:], left - Counter([sent]), wanted)
                best = max(best, size + rest)
    return best


few = st.text("xy", min_size=1, max_size=3)


@given(st.text("xyz", max_size=7), st.lists(few, max_size=4), st.booleans())
@example("xyxz", ["xy", "yx"], True)
@example("xyyy", ["yy", "xy"], False)
def test_the_most_is_explained(shown: str, sent: list[str], asked: bool) -> None:
    """No other explanation leaves fewer items; and what is certain is in all of the best ones."""
    left = Counter(sent)
    wanted = sent[-1] if sent and asked else None
    requests = [
        Requests(
            len(one),
            times,
            _standing(one, shown, in_part=one == wanted),
            wanted=_standing(one, shown, in_part=True) if one == wanted else {},
            in_part=one == wanted,
        )
        for one, times in left.items()
    ]
    pieces, come = explain(requests)
    explained = sum(piece.end - piece.start for piece in pieces)
    assert explained == _most(shown, left, wanted)
    assert sum(piece.wanted for piece in pieces) <= 1
    end = 0
    for piece in pieces:
        assert piece.start >= end
        end = piece.end
        assert [*left][piece.number].startswith(shown[piece.start : piece.end])
    for (one, times), used, certain in zip(left.items(), _used(pieces, left), come, strict=True):
        assert certain <= used <= times
        if certain:
            fewer = left - Counter({one: times - certain + 1})
            assert _most(shown, fewer, wanted) < explained
        if certain < used:
            fewer = left - Counter({one: times - certain})
            assert _most(shown, fewer, wanted) == explained


def _used(pieces: list[Piece], left: Counter[str]) -> list[int]:
    return [sum(piece.number == number for piece in pieces) for number in range(len(left))]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([Match.EQUAL, Match.EQUAL, Match.OTHER], (0, 2, 2)),
        ([Match.EQUAL, Match.UNCLEAR, Match.EQUAL], (0, 1, 3)),
        ([Match.UNCLEAR, Match.EQUAL], (0, 0, 2)),
        ([Match.UNCLEAR, Match.IDENTICAL, Match.UNCLEAR], (0, 2, 3)),
        ([Match.UNCLEAR, Match.EQUAL, Match.IDENTICAL, Match.EQUAL], (0, 4, 4)),
    ],
)
def test_what_is_certain_of_a_run(wanted: list[Match], expected: tuple[int, int, int]) -> None:
    """Equal items count up to the first unclear one; one known by its id proves those before it."""
    found = list(runs(len(wanted), len(wanted), lambda place, at: wanted[at]))
    assert next(run for run in found if run.start == 0) == expected


@pytest.mark.parametrize(
    ("sent", "shown", "texts"),
    [
        (" a ", "a", {" b": "b", "b\n": "b"}),
        ("a ", "a", {"b ": "b", " b": " b"}),
        ("a\0", "a", {"\0b": "b", "\x01b": "\x01b"}),
        ("a\r\n", "a\n", {"b\r\nc": "b\nc", "b\rc": "b\rc"}),
        ("e\u0301", "\u00e9", {"o\u0308": "\u00f6", "\ufb01": "\ufb01"}),
        ("\ufb01", "fi", {"\ufb02": "fl"}),
        (" a\0 \r\n", "a", {" b\0 \r\n": "b"}),
    ],
)
def test_what_an_answer_shows(sent: str, shown: str, texts: dict[str, str]) -> None:
    """An answer shows as little of a rewriting as explains it, and what it shows counts."""
    rewriting = learned(frozenset(), [(sent, shown)])
    for text, becomes in texts.items():
        (item,) = listed([message(becomes)])
        assert compare(message(text), item, rewriting) is Match.EQUAL
        (other,) = listed([message(becomes + "!")])
        assert compare(message(text), other, rewriting) is Match.UNCLEAR
    # Shown once as it was sent, nothing is taken for known any more.
    assert learned(rewriting, [(sent, sent)]) == frozenset()


@given(st.sampled_from([" b", "b\t", "\0b", "b\r\n", "e\u0301"]), words)
def test_what_an_answer_does_not_show(text: str, other: str) -> None:
    """A text cut, redacted or nested shows nothing: no text is taken for another one by it."""
    for sent, shown in (("a" * 9, "aaa"), ("a b c", "a [] c"), ("a", "b")):
        assert learned(frozenset(), [(sent, shown)]) == frozenset()
    assume(text != other)
    (item,) = listed([message(other)])
    assert compare(message(text), item, frozenset()) is Match.UNCLEAR
