"""The OpenAPI document: what FastAPI makes of the routes, and what it can't know.

Who may ask, how, and what each operation's problems look like come from the routes' own
dependencies, so that the document says what runs. Bodies get an example made of their fields'
examples and defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts

from taciturn.server.http.access import Guard, Requires, any_worker, guards, scraper, worker
from taciturn.server.identity.permissions import PERMISSIONS
from taciturn.server.problems import CODES, MEDIA_TYPE
from taciturn.wire.openai import OpenAIError
from taciturn.wire.values import Problem

_DESCRIPTION = (
    "Private data stays where it is; its owner holds the budget; practitioners fine-tune. "
    "Errors are RFC 9457 problems with a stable `code`. Lists are pages: `next_cursor` gets the "
    "next one."
)
_DEPTH = 8
_REFERENCE = "#/components/schemas/{model}"
OPENAI_TAG = "OpenAI"
"""Of the routes whose errors have OpenAI's shape, but for those that never reach a route."""

_WORKERS = (worker, any_worker, scraper)  # whose tokens are no person's


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, and who may come in."""

    method: str
    path: str
    route: APIRoute
    guards: tuple[Guard, ...]


def operations(app: FastAPI) -> Iterator[Operation]:
    """Everything that the application answers to."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute):
            guards_of_route = tuple(guards(context.dependant))
            for method in sorted(context.methods or ()):
                yield Operation(method, context.path_format or "", route, guards_of_route)


def unguarded(app: FastAPI) -> list[str]:
    """Routes that don't say who may come in, or contradict themselves; there must be none."""
    unclear = [f"{op.method} {op.path}" for op in operations(app) if not _clear(op.guards)]
    return unclear + [
        str(context.path)
        for context in iter_route_contexts(app.routes)
        if not isinstance(context.original_route, APIRoute) and context.path != "/openapi.json"
    ]


def _clear(guards_of_route: tuple[Guard, ...]) -> bool:
    several = len(guards_of_route) > 1 and all(
        isinstance(guard, Requires) for guard in guards_of_route
    )
    return len(guards_of_route) == 1 or several


def document(app: FastAPI) -> dict[str, Any]:
    """The document of an application; made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title="taciturn",
            version=app.version,
            description=_DESCRIPTION,
            routes=_documented(app),
        )
        _complete(app, schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _documented(app: FastAPI) -> list[RouteContext]:
    return list(iter_route_contexts(app.routes))


def _complete(app: FastAPI, schema: dict[str, Any]) -> None:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = Problem.model_json_schema()
    schemas["OpenAIError"] = OpenAIError.model_json_schema(ref_template=_REFERENCE)
    schemas.update(schemas["OpenAIError"].pop("$defs"))
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "`taciturn login` gets one."},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": app.state.services.sessions.cookie,
            "description": "A browser's; a write needs the header Taciturn-CSRF too.",
        },
    }
    for operation in operations(app):
        described = schema["paths"].get(operation.path, {}).get(operation.method.lower())
        if described is not None:
            _describe(operation, described, schemas)


def _describe(operation: Operation, described: dict[str, Any], schemas: dict[str, Any]) -> None:
    responses = described["responses"]
    responses.pop("422", None)
    statuses: list[int | str] = [*_statuses(operation, described), "4XX", "5XX"]
    for status in statuses:
        responses.setdefault(str(status), _problem(status, described.get("tags", ())))
    described["security"] = _security(operation)
    for guard in operation.guards:
        if isinstance(guard, Requires):
            described["x-taciturn-action"] = guard.action.value
            described["x-taciturn-roles"] = sorted(PERMISSIONS[guard.action])
    for content in described.get("requestBody", {}).get("content", {}).values():
        if "example" not in content and "examples" not in content and "schema" in content:
            content["example"] = example(content["schema"], schemas)


def _statuses(operation: Operation, described: dict[str, Any]) -> Iterator[int]:
    if any(isinstance(guard, Requires) or guard in _WORKERS for guard in operation.guards):
        yield from (401, 403)
    if "{" in operation.path:
        yield 404
    if described.get("parameters") or "requestBody" in described:
        yield 422
    if "requestBody" in described:
        yield 413


def _problem(status: int | str, tags: Sequence[str]) -> dict[str, Any]:
    codes = [code for code, (number, _) in CODES.items() if _matches(number, str(status))]
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    if OPENAI_TAG in tags:
        content["application/json"] = {"schema": {"$ref": _REFERENCE.format(model="OpenAIError")}}
    return {"description": f"Problem: {', '.join(codes)}", "content": content}


def _matches(number: int, status: str) -> bool:
    return str(number) == status or f"{number // 100}XX" == status


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    ways: list[dict[str, list[str]]] = []
    for guard in operation.guards:
        if isinstance(guard, Requires):
            ways += [{"bearer": []}, {"session": []}]
        elif guard in _WORKERS:
            ways.append({"bearer": []})
    return ways


def example(schema: dict[str, Any], schemas: dict[str, Any], depth: int = 0) -> Any:
    """A value of a schema, from examples, defaults and fixed values; of an object the fields that
    are required, fixed, or have an example."""
    if "$ref" in schema:
        schema = {**schemas[schema["$ref"].rpartition("/")[2]], **_without_ref(schema)}
    for key in ("example", "const", "default"):
        if schema.get(key) is not None:
            return schema[key]
    for list_key in ("examples", "enum"):
        if schema.get(list_key):
            return schema[list_key][0]
    for choices in ("oneOf", "anyOf", "allOf"):
        if schema.get(choices):
            return example(schema[choices][0], schemas, depth + 1)
    return _example_of_kind(schema, schemas, depth)


def _without_ref(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "$ref"}


def _example_of_kind(schema: dict[str, Any], schemas: dict[str, Any], depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object" and depth < _DEPTH:
        fields = schema.get("properties", {})
        optional = (n for n in fields if "examples" in fields[n] or "const" in fields[n])
        names = [*schema.get("required", ()), *optional]
        return {name: example(fields[name], schemas, depth + 1) for name in dict.fromkeys(names)}
    if kind == "array":
        item = example(schema.get("items", {}), schemas, depth + 1)
        return [item] * max(1, schema.get("minItems", 1))
    if kind == "string":
        return "x" * max(1, schema.get("minLength", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"boolean": True}.get(str(kind))
