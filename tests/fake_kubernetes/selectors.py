"""Label and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Match = Callable[[Mapping[str, Any]], bool]

_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")
_FIELDS = {
    "pods": {
        "metadata.name", "metadata.namespace", "spec.nodeName", "spec.restartPolicy",
        "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase",
        "status.podIP", "status.nominatedNodeName",
    },
    "events": {
        "metadata.name", "metadata.namespace", "involvedObject.kind", "involvedObject.namespace",
        "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion",
        "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason",
        "reportingComponent", "source", "type",
    },
    "jobs": {"metadata.name", "metadata.namespace", "status.successful"},
    "nodes": {"metadata.name", "spec.unschedulable"},
    "secrets": {"metadata.name", "metadata.namespace", "type"},
    "namespaces": {"metadata.name", "status.phase"},
}  # fmt: skip


class SelectorError(ValueError):
    """400: the selector is none."""


def labels(text: str) -> Match:
    """`a=b,c!=d,e,!f,g in (h,i),j notin (k)`."""
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]
    terms = [_term(part) for part in parts]
    return lambda found: all(term(found.get("metadata", {}).get("labels") or {}) for term in terms)


def of_labels(wanted: Mapping[str, str]) -> Match:
    """All of these labels."""
    return lambda found: wanted.items() <= (found.get("metadata", {}).get("labels") or {}).items()


def fields(text: str, resource: str) -> Match:
    """`metadata.name=a,status.phase!=Failed`; only what the resource can be selected by."""
    terms = [_field(part, resource) for part in text.split(",") if part]
    return lambda found: all(term(found) for term in terms)


def _term(part: str) -> Match:
    several = _SET.match(part)
    if several:
        key, word, rest = several.groups()
        values = {value.strip() for value in rest.split(",")}
        return lambda of: (of.get(key) in values) == (word == "in")
    for sign in ("!=", "==", "="):
        if sign in part:
            key, value = (side.strip() for side in part.split(sign, 1))
            return lambda of: (of.get(key) == value) == (sign != "!=")
    if " " in part:
        raise SelectorError(f"unable to parse requirement: {part!r}")
    return lambda of: part[1:] not in of if part.startswith("!") else part in of


def _field(part: str, resource: str) -> Match:
    sign = "!=" if "!=" in part else "="
    path, _, value = part.replace("==", "=").partition(sign)
    if path not in _FIELDS.get(resource, {"metadata.name", "metadata.namespace"}):
        raise SelectorError(f"field label not supported: {path}")
    return lambda found: (_at(found, path) == value) == (sign == "=")


def _at(found: Mapping[str, Any], path: str) -> str:
    value: Any = found
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
