"""What the benchmarks store, and the yardstick that reads are held against."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# A run with one tool call leaves four items. Their texts have about the
# lengths that an agent with tools leaves: 0.4 KB of JSON an item on average.
_QUESTION = "Question {0}: how many lanterns are there, and which of them are on their way? "
_OUTPUT = "{0} lanterns in stock: 4 of brass, 11 of tin, 2 under repair, the rest on loan. "
_ANSWER = "There are {0} lanterns. Two are under repair and come back on Monday; order more then. "


def items(count: int) -> list[Any]:
    """Items as an agent with one tool leaves them: question, call, output, answer, in turn."""
    return [_item(number) for number in range(count)]


def _item(number: int) -> dict[str, Any]:
    match number % 4:
        case 0:
            return {"role": "user", "content": _QUESTION.format(number)}
        case 1:
            return {
                "type": "function_call",
                "call_id": f"call_{number}",
                "name": "stock",
                "arguments": json.dumps({"item": "lanterns", "warehouse": number}),
            }
        case 2:
            return {
                "type": "function_call_output",
                "call_id": f"call_{number - 1}",
                "output": _OUTPUT.format(number) * 4,
            }
        case _:
            text = _ANSWER.format(number) * 5
            return {
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }


def structural_copy(value: Any) -> Any:
    """A plain recursive copy of dicts and lists: what a copy of JSON costs in Python."""
    if isinstance(value, dict):
        return {key: structural_copy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [structural_copy(part) for part in value]
    return value


def json_bytes(stored: Iterable[Any]) -> int:
    """Bytes of the items as compact JSON."""
    return sum(
        len(json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()) for item in stored
    )
