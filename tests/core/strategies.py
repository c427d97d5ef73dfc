"""Values that the property tests of the pure modules are given."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from cached_session.core.items import Held, hold
from cached_session.emulator import Habits, Request, Service

KEY = {"authorization": "Bearer key"}

words = st.text(st.characters(codec="utf-8"), max_size=12)
"""Any text that UTF-8 can carry."""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(words, json_values, max_size=4)

roles = st.sampled_from(["user", "assistant", "system", "developer"])
input_texts = st.fixed_dictionaries({"type": st.just("input_text"), "text": words})
output_texts = st.fixed_dictionaries(
    {"type": st.just("output_text"), "text": words},
    optional={"annotations": st.just([]), "logprobs": st.just([{"token": "a", "logprob": -0.5}])},
)
refusals = st.fixed_dictionaries({"type": st.just("refusal"), "refusal": words})
images = st.fixed_dictionaries(
    {"type": st.just("input_image"), "image_url": words},
    optional={"detail": st.sampled_from(["low", "high", None])},
)
files = st.fixed_dictionaries(
    {"type": st.just("input_file")}, optional={"file_data": words, "filename": words}
)
parts = input_texts | output_texts | refusals | images | files

messages = st.fixed_dictionaries(
    {"role": roles, "content": words | st.lists(parts, max_size=3)},
    optional={"type": st.just("message"), "status": st.just("completed")},
)
calls = st.fixed_dictionaries(
    {
        "type": st.just("function_call"),
        "call_id": st.sampled_from(["call_1", "call_2", "call_3"]),
        "name": words,
        "arguments": words,
    }
)
outputs = st.fixed_dictionaries(
    {
        "type": st.just("function_call_output"),
        "call_id": st.sampled_from(["call_1", "call_2", "call_3"]),
        "output": words | st.lists(input_texts, max_size=2),
    }
)
reasoning = st.fixed_dictionaries(
    {
        "type": st.just("reasoning"),
        "summary": st.lists(
            st.fixed_dictionaries({"type": st.just("summary_text"), "text": words}), max_size=2
        ),
    },
    optional={"encrypted_content": words},
)
items: st.SearchStrategy[dict[str, Any]] = messages | calls | outputs | reasoning
"""Items as a client sends them."""

habits = st.builds(Habits, content_left_as_string=st.booleans(), ids_rewritten=st.booleans())
"""What servers make of them differently."""


def listed(sent: list[dict[str, Any]], server: Habits | None = None) -> list[dict[str, Any]]:
    """The items as a server lists them that was sent them; the emulator's, without HTTP."""
    service = Service(habits=server)

    def call(method: str, path: str, body: object) -> Any:
        answer = service.handle(Request.parse(method, path, KEY, json.dumps(body).encode()))
        assert answer.status == 200, answer.body
        return answer.json()

    conversation = call("POST", "/v1/conversations", {})["id"]
    for start in range(0, len(sent), 20):
        path = f"/v1/conversations/{conversation}/items"
        call("POST", path, {"items": sent[start : start + 20]})
    return service.items(conversation)


def held(item_id: str, text: str = "", role: str = "user") -> Held:
    """A message as it is held."""
    content = [{"type": "input_text", "text": text}]
    return hold({"id": item_id, "type": "message", "role": role, "content": content})


def message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reordered(value: Any) -> Any:
    """The same JSON with the keys of every object in another order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [reordered(inner) for inner in value]
    return value
