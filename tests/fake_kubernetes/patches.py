"""JSON merge patches (RFC 7396) and JSON patches (RFC 6902); strategic ones as far as maps go."""

from __future__ import annotations

import copy
from typing import Any


class PatchError(ValueError):
    """400 or 422: the patch cannot be applied."""


def apply(found: dict[str, Any], patch: Any, media_type: str) -> dict[str, Any]:
    """The object that the patch makes of `found`."""
    if media_type == "application/json-patch+json":
        if not isinstance(patch, list):
            raise PatchError("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
        return _operations(copy.deepcopy(found), patch)
    if media_type in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
        merged: dict[str, Any] = merge(copy.deepcopy(found), patch)
        return merged
    raise PatchError(f"the body of the request was in an unknown format: {media_type}")


def merge(old: Any, patch: Any) -> Any:
    """Null removes, maps merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    kept = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            kept.pop(name, None)
        else:
            kept[name] = merge(kept.get(name), value)
    return kept


def _operations(found: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    for each in operations:
        *way, last = [
            part.replace("~1", "/").replace("~0", "~") for part in each["path"].split("/")[1:]
        ]
        holder: Any = found
        for part in way:
            holder = _step(holder, part)
        _apply_one(holder, last, each)
    return found


def _step(holder: Any, part: str) -> Any:
    try:
        return holder[int(part)] if isinstance(holder, list) else holder[part]
    except (KeyError, IndexError, ValueError):
        raise PatchError(f"the path {part!r} is not there") from None


def _apply_one(holder: Any, last: str, each: dict[str, Any]) -> None:
    kind = each["op"]
    if kind == "test":
        if _step(holder, last) != each["value"]:
            raise PatchError(f"testing path {each['path']} value failed")
    elif kind == "add" and isinstance(holder, list):
        holder.insert(len(holder) if last == "-" else int(last), each["value"])
    elif kind == "add":
        holder[last] = each["value"]
    elif kind in ("replace", "remove"):
        _step(holder, last)
        index: Any = int(last) if isinstance(holder, list) else last
        if kind == "remove":
            del holder[index]
        else:
            holder[index] = each["value"]
    else:
        raise PatchError(f"unexpected kind {kind!r}")
