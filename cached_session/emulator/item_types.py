"""The item types as data: id prefix, required fields, and what the service adds.

Sources. "recorded": the prefixes ``msg`` and ``fc`` and the refusal of other ones, ``status``
added to messages. "spec": the required fields, and which types always carry a ``status`` when
they are listed. The other prefixes are those that ids of the Responses API carry where they have
been seen, and plausible ones where not; a wrong one is refused only where ``checked`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["CONTENT_PARTS", "ITEM_TYPES", "MESSAGE", "ROLES", "ItemType"]

MESSAGE: Final = "message"
ROLES: Final = ("user", "assistant", "system", "developer")

CONTENT_PARTS: Final = frozenset(
    {
        "input_text",
        "input_image",
        "input_file",
        "input_audio",
        "output_text",
        "refusal",
        "text",
        "summary_text",
        "reasoning_text",
        "computer_screenshot",
    }
)
"""Content parts of the input and output message types (spec)."""


@dataclass(frozen=True, slots=True)
class ItemType:
    """What the service knows of one item type.

    Attributes:
        prefix: What ids of this type begin with.
        required: Fields that an append has to carry, besides ``type``, ``id`` and ``status``.
            Those that may be null may be missing too.
        checked: Whether an id with another prefix is refused.
        defaults: Fields that the service adds where the client left them out.
    """

    prefix: str
    required: tuple[str, ...] = ()
    checked: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)


_DONE: Final = {"status": "completed"}

ITEM_TYPES: Final[Mapping[str, ItemType]] = {
    MESSAGE: ItemType("msg", ("role", "content"), checked=True, defaults=_DONE),
    "function_call": ItemType("fc", ("call_id", "name", "arguments"), checked=True, defaults=_DONE),
    # The call id is optional by the spec's type, but an output without one answers no call.
    "function_call_output": ItemType("fco", ("output",), defaults=_DONE),
    # The service refuses reasoning ids with another prefix in the Responses API; assumed here.
    "reasoning": ItemType("rs", ("summary",), checked=True),
    "compaction": ItemType("cmp", ("encrypted_content",)),
    # No listed type exists for a trigger (spec). It is stored like the rest: not known.
    "compaction_trigger": ItemType("cmpt"),
    "configuration_update": ItemType("cfg"),
    "additional_tools": ItemType("at", ("role", "tools")),
    "web_search_call": ItemType("ws", ("action",), defaults=_DONE),
    "file_search_call": ItemType("fs", ("queries",), defaults=_DONE),
    "computer_call": ItemType("cu", ("call_id", "pending_safety_checks"), defaults=_DONE),
    "computer_call_output": ItemType("cuo", ("call_id", "output"), defaults=_DONE),
    "code_interpreter_call": ItemType("ci", ("container_id",), defaults=_DONE),
    "image_generation_call": ItemType("ig", defaults=_DONE),
    "local_shell_call": ItemType("lsh", ("action", "call_id"), defaults=_DONE),
    "local_shell_call_output": ItemType("lsho", ("output",)),
    "shell_call": ItemType("sh", ("action", "call_id"), defaults=_DONE),
    "shell_call_output": ItemType("sho", ("call_id", "output"), defaults=_DONE),
    "apply_patch_call": ItemType("apc", ("call_id", "operation"), defaults=_DONE),
    "apply_patch_call_output": ItemType("apco", ("call_id",), defaults=_DONE),
    "custom_tool_call": ItemType("ctc", ("call_id", "input", "name")),
    "custom_tool_call_output": ItemType("ctco", ("call_id", "output")),
    # A client that stores its own search ran it; which word the service adds is not known.
    "tool_search_call": ItemType("tsc", ("arguments",), defaults={**_DONE, "execution": "client"}),
    "tool_search_output": ItemType("tso", ("tools",), defaults={**_DONE, "execution": "client"}),
    "mcp_list_tools": ItemType("mcpl", ("server_label", "tools")),
    "mcp_approval_request": ItemType("mcpr", ("arguments", "name", "server_label")),
    "mcp_approval_response": ItemType("mcpa", ("approval_request_id", "approve")),
    "mcp_call": ItemType("mcp", ("arguments", "name", "server_label")),
    "program": ItemType("prog", ("call_id", "code", "fingerprint")),
    "program_output": ItemType("progo", ("call_id", "result"), defaults=_DONE),
}
"""Every type that an append may carry, ``item_reference`` apart (spec)."""
