"""Unknown and mistyped fields: what the real server's decoder says, by the official models."""

from __future__ import annotations

from typing import Any

from kubernetes.client import models
from pydantic import BaseModel, ValidationError

MODELS: dict[str, type[BaseModel]] = {
    "pods": models.V1Pod,
    "jobs": models.V1Job,
    "services": models.V1Service,
    "secrets": models.V1Secret,
    "configmaps": models.V1ConfigMap,
    "nodes": models.V1Node,
    "namespaces": models.V1Namespace,
    "networkpolicies": models.V1NetworkPolicy,
    "events": models.CoreV1Event,
    "serviceaccounts": models.V1ServiceAccount,
}


class DecodingError(ValueError):
    """400: not an object of this kind."""


class RequiredError(ValueError):
    """422: a field is missing."""


def decode(resource: str, body: dict[str, Any], mode: str) -> list[str]:
    """Check a body. Fields that no model knows are removed from it, or (`Strict`) refused.

    Returns:
        One warning for each removed field, which mode `Ignore` keeps to itself.
    """
    model = MODELS[resource]
    _check_identity(model, resource, body)
    for _ in range(20):  # each round may uncover what an unknown field's sibling hid
        errors = _errors(model, body)
        unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
        _refuse_mistyped(errors)
        if not unknown:
            break
        words = [f'unknown field "{_path(loc)}"' for loc in unknown]
        if mode == "Strict":
            raise DecodingError("strict decoding error: " + ", ".join(words))
        for loc in unknown:
            _remove(body, loc)
        return words + decode(resource, body, mode)
    return []


def _check_identity(model: type[BaseModel], resource: str, body: dict[str, Any]) -> None:
    kind = model.__name__.removeprefix("Core").removeprefix("V1")
    if body.setdefault("kind", kind) != kind:
        raise DecodingError(f"the object provided is unrecognized: {body['kind']!r} is no {kind}")
    groups = {"jobs": "batch/v1", "networkpolicies": "networking.k8s.io/v1"}
    expected = groups.get(resource, "v1")
    if body.setdefault("apiVersion", expected) != expected:
        raise DecodingError(f"the API version in the data ({body['apiVersion']}) is not {expected}")


def _errors(model: type[BaseModel], body: dict[str, Any]) -> list[Any]:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return list(error.errors())
    return []


def _refuse_mistyped(errors: list[Any]) -> None:
    for error in errors:
        if error["type"] not in ("extra_forbidden", "missing"):
            path = _path(error["loc"])
            raise DecodingError(
                f"json: cannot unmarshal {type(error['input']).__name__} into field {path}"
            )
    missing = [_path(error["loc"]) for error in errors if error["type"] == "missing"]
    if missing and len(missing) == len(errors):
        raise RequiredError(", ".join(f"{path}: Required value" for path in missing))


def _path(loc: tuple[Any, ...]) -> str:
    words = ""
    for part in loc:
        words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else str(part)
    return words


def _remove(body: Any, loc: tuple[Any, ...]) -> None:
    for part in loc[:-1]:
        body = body[part]
    body.pop(loc[-1], None)
