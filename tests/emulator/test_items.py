"""Every item type of the openai package goes in, comes out, and is what the package expects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.conversations.conversation_item import ConversationItem
from openai.types.conversations.message import Content
from openai.types.responses.response_includable import ResponseIncludable
from openai.types.responses.response_input_content_param import ResponseInputContentParam
from pydantic import TypeAdapter

from cached_session.emulator import Emulator
from cached_session.emulator.item_types import ITEM_TYPES
from cached_session.emulator.visibility import INCLUDABLE
from tests.emulator.api import Api, user
from tests.emulator.samples import (
    INPUT_TYPES,
    LISTED_TYPES,
    OUTPUT_TYPES,
    demanded_fields,
    members,
    sample,
)

EVERYTHING = sorted(INCLUDABLE)
# A reference is no item of its own, see test_reference_lists_what_it_names.
SENT_TYPES = [kind for kind in INPUT_TYPES if kind.__name__ != "ItemReference"]
LISTED: TypeAdapter[Any] = TypeAdapter(ConversationItem)


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture(scope="module")
def client(emulator: Emulator) -> Iterator[OpenAI]:
    http = httpx2.Client(trust_env=False)
    with OpenAI(
        base_url=emulator.base_url, api_key="key", max_retries=0, http_client=http
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def api(emulator: Emulator) -> Iterator[Api]:
    api = Api(emulator.base_url, "emulator")
    with api.client:
        yield api


def sendable(annotation: Any, *, whole: bool) -> dict[str, Any]:
    """A sample in a shape that a client would send."""
    item: dict[str, Any] = sample(annotation, whole=whole)
    item.pop("id", None)
    if item.get("role") == "unknown":
        item["role"] = "developer" if item["type"] == "additional_tools" else "user"
    return item


def assert_round_trip(client: OpenAI, emulator: Emulator, item: dict[str, Any]) -> None:
    """Appends an item and checks the answer, the typed list, and what it says about the item."""
    conversation = client.conversations.create().id
    created = client.conversations.items.create(conversation, items=[item], include=EVERYTHING)  # type: ignore[list-item,arg-type]
    page = client.conversations.items.list(conversation, include=EVERYTHING)  # type: ignore[arg-type]
    assert page.data == created.data
    (typed,) = page.data
    (raw,) = emulator.items(conversation, include=INCLUDABLE)
    kind = item.get("type", "message")
    assert typed.type == kind
    assert raw["id"].startswith(ITEM_TYPES[kind].prefix + "_")
    assert typed.model_dump(mode="json", by_alias=True, exclude_unset=True) == raw
    for name, value in item.items():
        if name == "content" and isinstance(value, str):
            assert [part["text"] for part in raw["content"]] == [value]
        elif kind == "message" and name == "content":
            for sent, listed in zip(value, raw["content"], strict=True):
                assert listed.items() >= sent.items()
        else:
            assert raw[name] == value
    if kind != "compaction_trigger":
        # No listed type exists for a trigger; every other listing has to be what the types say.
        LISTED.validate_python(raw)


@pytest.mark.parametrize("whole", [False, True], ids=["least", "whole"])
@pytest.mark.parametrize("annotation", SENT_TYPES, ids=lambda kind: kind.__name__)
def test_input_type_round_trips(
    client: OpenAI, emulator: Emulator, annotation: Any, whole: bool
) -> None:
    """Every input item, with its required fields and with all, is listed as it was sent."""
    assert_round_trip(client, emulator, sendable(annotation, whole=whole))


@pytest.mark.parametrize(
    "annotation",
    list(dict.fromkeys([*OUTPUT_TYPES, *LISTED_TYPES])),
    ids=lambda kind: f"{kind.__module__.split('.')[-1]}-{kind.__name__}",
)
def test_output_type_round_trips(client: OpenAI, emulator: Emulator, annotation: Any) -> None:
    """Every item that a model or a listing gives can be appended, and is listed as it was."""
    assert_round_trip(client, emulator, sendable(annotation, whole=True))


@pytest.mark.parametrize(
    "part",
    [sample(kind, whole=True) for kind in members(ResponseInputContentParam)],
    ids=lambda part: str(part["type"]),
)
def test_input_content_round_trips(client: OpenAI, emulator: Emulator, part: Any) -> None:
    """Every content part of the input types is listed as it was sent."""
    assert_round_trip(client, emulator, {"type": "message", "role": "user", "content": [part]})


@pytest.mark.parametrize(
    "part",
    [sample(kind, whole=True) for kind in members(Content)],
    ids=lambda part: str(part["type"]),
)
def test_listed_content_round_trips(client: OpenAI, emulator: Emulator, part: Any) -> None:
    """Every content part of the listed types is listed as it was sent."""
    assert_round_trip(client, emulator, {"type": "message", "role": "assistant", "content": [part]})


def test_reference_lists_what_it_names(client: OpenAI, emulator: Emulator) -> None:
    """A reference stands for the item that it names, with and without its type."""
    first = client.conversations.create(items=[{"role": "user", "content": "x"}]).id
    (item,) = emulator.items(first)
    for reference in ({"type": "item_reference", "id": item["id"]}, {"id": item["id"]}):
        other = client.conversations.create().id
        client.conversations.items.create(other, items=[reference])  # type: ignore[list-item]
        assert emulator.items(other) == [item]


def test_table_knows_every_type() -> None:
    """The table has every type of both unions and no other, with the fields that both demand.

    It was made from openai 3.54. An older release knows fewer types and may demand more.
    """
    demanded: dict[str, set[str]] = {}
    for annotation in [*INPUT_TYPES, *OUTPUT_TYPES, *LISTED_TYPES]:
        kind = sample(annotation, whole=True)["type"]
        fields = demanded_fields(annotation) - {"id", "type", "status", "execution"}
        demanded[kind] = demanded.get(kind, fields) & fields
    demanded.pop("item_reference")
    table = {kind: set(entry.required) for kind, entry in ITEM_TYPES.items()}
    if tuple(map(int, openai.__version__.split(".")[:2])) >= (3, 54):
        assert table == demanded
    else:
        assert demanded.keys() <= table.keys()
        assert all(table[kind] <= fields for kind, fields in demanded.items())


def test_include_knows_every_value() -> None:
    """`include` takes the values of the openai package and no other."""
    assert set(get_args(ResponseIncludable)) == set(INCLUDABLE)


LEFT_OUT: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {"role": "user", "content": [{"type": "input_image", "image_url": "u", "detail": "low"}]},
        "message.input_image.image_url",
        {"content": [{"type": "input_image", "detail": "low"}]},
    ),
    (
        {
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "t", "annotations": [], "logprobs": [{"a": 1}]}
            ],
        },
        "message.output_text.logprobs",
        {
            "content": [
                {"type": "output_text", "text": "t", "annotations": [], "logprobs": []},
            ]
        },
    ),
    (
        {"type": "reasoning", "summary": [], "encrypted_content": "e"},
        "reasoning.encrypted_content",
        {"summary": []},
    ),
    (
        {
            "type": "computer_call_output",
            "call_id": "c",
            "output": {"type": "computer_screenshot", "image_url": "u"},
        },
        "computer_call_output.output.image_url",
        {"output": {"type": "computer_screenshot"}},
    ),
    (
        {"type": "file_search_call", "queries": ["q"], "results": [{"text": "t"}]},
        "file_search_call.results",
        {"results": None},
    ),
    (
        {
            "type": "code_interpreter_call",
            "code": "1",
            "container_id": "c",
            "outputs": [{"type": "logs", "logs": "l"}],
        },
        "code_interpreter_call.outputs",
        {"outputs": None},
    ),
    (
        {
            "type": "web_search_call",
            "action": {"type": "search", "query": "q", "sources": [{"type": "url", "url": "u"}]},
        },
        "web_search_call.action.sources",
        {"action": {"type": "search", "query": "q"}},
    ),
]


@pytest.mark.parametrize(("item", "name", "shown"), LEFT_OUT, ids=[row[1] for row in LEFT_OUT])
def test_listing_leaves_out_what_was_not_asked_for(
    api: Api, item: dict[str, Any], name: str, shown: dict[str, Any]
) -> None:
    """Append, list and retrieve leave the field out, and `include` brings it back, in each."""
    conversation = api.conversation()
    (created,) = api.append(conversation, item).body["data"]
    path = f"/conversations/{conversation}/items/{created['id']}"
    assert created.items() >= shown.items()
    assert "encrypted_content" not in created
    assert api.list(conversation).body["data"] == [created]
    assert api.call("GET", path).body == created

    (asked,) = api.list(conversation, **{"include[]": name}).body["data"]
    assert asked.items() >= item.items()
    assert api.call("GET", path, include=name).body == asked
    (again,) = api.append(api.conversation(), item, include=name).body["data"]
    assert again | {"id": ""} == asked | {"id": ""}


def test_several_includes_at_once(api: Api) -> None:
    """Several fields can be asked for in one listing."""
    conversation = api.conversation()
    api.append(conversation, *[item for item, _, _ in LEFT_OUT])
    data = api.list(conversation, order="asc", **{"include[]": EVERYTHING}).body["data"]
    for listed, (item, _, _) in zip(data, LEFT_OUT, strict=True):
        assert listed.items() >= item.items()


def test_null_fields_read_as_missing(api: Api) -> None:
    """A null id, type or status counts as not sent."""
    (item,) = api.append(
        api.conversation(),
        {"id": None, "type": None, "status": None, "role": "user", "content": "x"},
    ).body["data"]
    assert item["id"].startswith("msg_")
    assert (item["type"], item["status"]) == ("message", "completed")


def test_sent_status_stays(api: Api) -> None:
    """A status that the client sent is kept."""
    (item,) = api.append(api.conversation(), user("x", status="incomplete")).body["data"]
    assert item["status"] == "incomplete"


@pytest.mark.parametrize(
    ("item", "param", "code"),
    [
        ("text", "items[0]", "invalid_type"),
        ({"type": "nonsense"}, "items[0].type", "invalid_value"),
        ({"type": ["message"]}, "items[0].type", "invalid_value"),
        ({"role": "user"}, "items[0].content", "missing_required_parameter"),
        ({"content": "x"}, "items[0].role", "missing_required_parameter"),
        ({"role": "stranger", "content": "x"}, "items[0].role", "invalid_value"),
        ({"role": "user", "content": 1}, "items[0].content", "invalid_type"),
        ({"role": "user", "content": ["x"]}, "items[0].content[0]", "invalid_type"),
        (
            {"role": "user", "content": [{"type": "smell"}]},
            "items[0].content[0].type",
            "invalid_value",
        ),
        ({"type": "item_reference"}, "items[0].id", "missing_required_parameter"),
        ({"role": "user", "content": "x", "id": 1}, "items[0].id", "invalid_type"),
        ({"role": "user", "content": "x", "id": ""}, "items[0].id", "invalid_value"),
        ({"type": "reasoning", "summary": [], "id": "x"}, "items[0].id", "invalid_value"),
        ({"type": "mcp_call", "id": ""}, "items[0].arguments", "missing_required_parameter"),
    ],
)
def test_bad_item_names_its_place(api: Api, item: Any, param: str, code: str) -> None:
    """An item that is not acceptable is 400, with the place and a word for the reason."""
    conversation = api.conversation()
    answer = api.append(conversation, item)
    assert answer.status == 400
    assert (answer.body["error"]["param"], answer.body["error"]["code"]) == (param, code)
    assert api.list(conversation).body["data"] == []
