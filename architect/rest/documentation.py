"""What OpenAPI says of our answers: schemas of msgspec structs, inlined, since FastAPI itself knows only Pydantic's."""

from __future__ import annotations

import types
from typing import Any

import msgspec

from architect.rest.answers import JSON_LINES, ErrorAnswer


def answers(what: str, *kinds: Any, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers one of these types, as one document or as a stream of lines."""
    media = JSON_LINES if streams else "application/json"
    return {
        200: {"description": what, "content": {media: {"schema": {"anyOf": [schema_of(kind) for kind in kinds]}}}},
        "4XX": {"description": "a refusal", "content": {"application/json": {"schema": schema_of(ErrorAnswer)}}},
        "5XX": {"description": "a failure", "content": {"application/json": {"schema": schema_of(ErrorAnswer)}}},
    }


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type, with what it refers to put in its place."""
    if isinstance(kind, types.UnionType):  # of structs without tags, which msgspec does not take as one type
        return {"anyOf": [schema_of(part) for part in kind.__args__]}
    (schema,), components = msgspec.json.schema_components([kind])
    inlined = _inlined(schema, components)
    assert isinstance(inlined, dict)
    return inlined


def _inlined(node: Any, components: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if isinstance(reference := node.get("$ref"), str):
            return _inlined(components[reference.rsplit("/", 1)[-1]], components)
        return {key: _inlined(value, components) for key, value in node.items()}
    if isinstance(node, list):
        return [_inlined(value, components) for value in node]
    return node
