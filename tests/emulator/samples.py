"""Values for every type of the openai package, built from the types themselves.

A new member of a union turns up in the tests by itself with the release that brings it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any, NotRequired, Required, Union

from openai import BaseModel
from openai.types.conversations.conversation_item import ConversationItem
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.response_output_item import ResponseOutputItem
from typing_extensions import is_typeddict


def members(union: Any) -> list[type]:
    """Returns the classes of a union, with or without a discriminator around it."""
    if typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    return list(typing.get_args(union))


INPUT_TYPES = members(ResponseInputItemParam)
OUTPUT_TYPES = members(ResponseOutputItem)
LISTED_TYPES = members(ConversationItem)


def sample(annotation: Any, *, whole: bool) -> Any:
    """Returns a JSON value of a type.

    Args:
        annotation: A TypedDict, a model, or any annotation inside them.
        whole: Whether optional fields are filled in too.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Annotated, Required, NotRequired):
        return sample(arguments[0], whole=whole)
    if origin is typing.Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        chosen = [argument for argument in arguments if argument is not type(None)]
        return sample(chosen[0], whole=whole)
    if origin is dict:
        return {"key": sample(arguments[1], whole=whole)}
    if is_typeddict(annotation):
        return _fields(annotation, whole=whole)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _model(annotation, whole=whole)
    if origin in (list, Iterable) or (origin is not None and arguments):
        # The package's own sequence type for lists of strings is generic as well.
        return [sample(arguments[0], whole=whole)]
    return {str: "text", int: 1, float: 0.5, bool: True}.get(annotation, {"any": "value"})


def _fields(annotation: Any, *, whole: bool) -> dict[str, Any]:
    hints = typing.get_type_hints(annotation, include_extras=True)
    return {
        name: sample(hint, whole=whole)
        for name, hint in hints.items()
        if whole or typing.get_origin(hint) is Required
    }


def _model(annotation: type[BaseModel], *, whole: bool) -> dict[str, Any]:
    return {
        field.alias or name: sample(field.annotation, whole=whole)
        for name, field in annotation.model_fields.items()
        if whole or field.is_required()
    }


def demanded_fields(annotation: Any) -> set[str]:
    """Returns the fields that a type demands and that may not be null."""
    if is_typeddict(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        return {
            name
            for name, hint in hints.items()
            if typing.get_origin(hint) is Required
            and type(None) not in typing.get_args(typing.get_args(hint)[0])
        }
    return {name for name, field in annotation.model_fields.items() if field.is_required()}
