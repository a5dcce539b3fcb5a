"""Handler of the API server's requests: find, make, change and delete objects."""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fake_kubernetes import defaults, patches, refusals, selectors
from fake_kubernetes.clock import stamp
from fake_kubernetes.selectors import Match
from fake_kubernetes.store import CLUSTER_WIDE, Object, Store
from fake_kubernetes.strictness import MODELS, DecodingError, RequiredError, decode

_FOREGROUND, _ORPHAN = "foregroundDeletion", "orphan"
_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound",
    405: "MethodNotAllowed", 409: "Conflict", 410: "Expired", 415: "UnsupportedMediaType",
    422: "Invalid", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable",
    504: "Timeout",
}  # fmt: skip


class ApiError(Exception):
    """An answer of kind Status."""

    def __init__(self, code: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.reason = code, message, reason or _REASONS[code]

    def status(self) -> Object:
        """Return the answer's body."""
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """Resource and object of a request."""

    resource: str
    namespace: str | None
    name: str | None = None
    sub: str | None = None


@dataclass
class Api:
    """The verbs, on a store.

    Attributes:
        forbidden: (verb, resource) pairs that are answered with 403.
        full: resources of which the namespace's quota allows no more.
        permits: what an access review says, beside what is forbidden: of verb, group, resource and
            namespace.
        contended: resources, one for each creation to come whose update of a quota loses a race.
    """

    store: Store
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    permits: Callable[[Object], bool] = lambda _: True
    contended: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _pages: dict[str, tuple[int, list[Object]]] = field(default_factory=dict)

    def review(self, body: Object) -> Object:
        """Answer a SelfSubjectAccessReview: may the caller do this?"""
        attributes = body["spec"]["resourceAttributes"]
        pair = (attributes["verb"], attributes["resource"])
        allowed = pair not in self.forbidden and self.permits(attributes)
        return {**body, "status": {"allowed": allowed}}

    def allow(self, verb: str, target: Target) -> None:
        """Raise 403 where the caller may not; `target.namespace` None asks for all namespaces."""
        everywhere = target.namespace is None and target.resource not in CLUSTER_WIDE
        names = {target.resource, f"{target.resource}/*" if everywhere else target.resource}
        if any((verb, name) in self.forbidden for name in names):
            raise ApiError(
                403, f'{target.resource} is forbidden: User "taciturn" cannot {verb} resource '
                f'"{target.resource}"'
            )  # fmt: skip

    def get(self, target: Target) -> Object:
        """One object."""
        assert target.name is not None
        found = self.store.find(target.resource, target.namespace, target.name)
        if found is None:
            raise ApiError(404, f'{target.resource} "{target.name}" not found')
        return found

    def list(self, target: Target, query: Mapping[str, str]) -> Object:
        """Objects, selected, in pages of `limit`."""
        if "continue" in query:
            version, rest = self._rest(query["continue"])
        else:
            with self.store.lock:
                version = self.store.version
                chosen = self.selection(target, query)
                rest = [
                    each
                    for each in self.store.all(target.resource, target.namespace)
                    if chosen(each)
                ]
        limit = int(query.get("limit") or 0) or len(rest) or 1
        metadata: Object = {"resourceVersion": str(version)}
        if len(rest) > limit:
            token = base64.urlsafe_b64encode(secrets.token_bytes(12)).decode()
            self._pages[token] = (version, rest[limit:])
            metadata |= {"continue": token, "remainingItemCount": len(rest) - limit}
        kind = MODELS[target.resource].__name__.removeprefix("Core").removeprefix("V1")
        version_of = rest[0]["apiVersion"] if rest else _version(target.resource)
        items = [
            {k: v for k, v in each.items() if k not in ("kind", "apiVersion")} for each in rest
        ]
        return {"kind": f"{kind}List", "apiVersion": version_of, "metadata": metadata,
                "items": items[:limit]}  # fmt: skip

    def selection(self, target: Target, query: Mapping[str, str]) -> Match:
        """Return the objects that `labelSelector` and `fieldSelector` choose in the namespace."""
        try:
            by_label = selectors.labels(query.get("labelSelector", ""))
            by_field = selectors.fields(query.get("fieldSelector", ""), target.resource)
        except selectors.SelectorError as error:
            raise ApiError(400, str(error)) from None
        room = target.namespace

        def chosen(found: Mapping[str, Any]) -> bool:
            inside = room is None or found["metadata"].get("namespace") == room
            return inside and by_label(found) and by_field(found)

        return (
            chosen if target.resource not in CLUSTER_WIDE else lambda f: by_label(f) and by_field(f)
        )

    def create(self, target: Target, body: Any, query: Mapping[str, str]) -> Object:
        """A new object."""
        made = self._decoded(target, body, query)
        metadata = made.setdefault("metadata", {})
        self._place(target, metadata)
        prefix = metadata.get("generateName")
        if not metadata.get("name"):
            if not prefix:
                raise ApiError(
                    422, "metadata.name: Required value: name or generateName is required"
                )
            metadata["name"] = prefix + defaults.suffix()
        for owned in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"):
            metadata.pop(owned, None)
        made.pop("status", None) if target.resource not in ("events", "nodes") else None
        self._refuse(target, metadata["name"], refusals.of_new(target.resource, made))
        with self.store.lock:
            self._check_room(target)
            if self.store.find(target.resource, target.namespace, metadata["name"]):
                raise ApiError(
                    409, f'{target.resource} "{metadata["name"]}" already exists', "AlreadyExists"
                )
            self._check_quota(target, metadata["name"])
            metadata["uid"] = str(uuid.uuid4())
            try:
                defaults.fill(target.resource, made)
            except ValueError as error:
                raise ApiError(400, str(error)) from None
            if query.get("dryRun"):
                return made
            return self.store.add(target.resource, made)

    def _check_quota(self, target: Target, name: str) -> None:
        if target.resource in self.contended:
            self.contended.remove(target.resource)
            raise ApiError(
                409, 'Operation cannot be fulfilled on resourcequotas "quota": the object has been '
                "modified; please apply your changes to the latest version and try again"
            )  # fmt: skip
        if target.resource in self.full:
            count = f"count/{target.resource}"
            raise ApiError(
                403, f'{target.resource} "{name}" is forbidden: exceeded quota: quota, requested: '
                f"{count}=1, used: {count}=9, limited: {count}=9"
            )  # fmt: skip

    def replace(self, target: Target, body: Any, query: Mapping[str, str]) -> Object:
        """PUT: the whole object; 409 unless it is of the newest version."""
        new = self._decoded(target, body, query)
        with self.store.lock:
            old = self.get(target)
            return self._change(target, old, new)

    def patch(self, target: Target, body: Any, media_type: str, query: Mapping[str, str]) -> Object:
        """PATCH: what is said, on the newest version."""
        with self.store.lock:
            old = self.get(target)
            try:
                new = patches.apply(old, body, media_type)
            except patches.PatchError as error:
                wrong_type = "unknown format" in str(error)
                code = 415 if wrong_type else 400 if "unmarshal" in str(error) else 422
                raise ApiError(code, str(error)) from None
            told, before = new["metadata"].get("uid"), old["metadata"]["uid"]
            if told != before:
                words = f'metadata.uid: Invalid value: "{told}": field is immutable'
                self._refuse(target, target.name or "", [words])
            self._decoded(target, new, query)
            return self._change(target, old, new)

    def delete(self, target: Target, options: Mapping[str, Any]) -> Object:
        """Mark an object for deletion; it goes when nothing holds it."""
        with self.store.lock:
            found = self.get(target)
            metadata = found["metadata"]
            self._check_preconditions(target, metadata, options.get("preconditions") or {})
            if target.resource == "pods":
                return self._delete_pod(found, options)
            held = self._held(target, options)

            def mark(new: Object) -> None:
                new["metadata"].setdefault("deletionTimestamp", self.store.clock.stamp())
                new["metadata"].setdefault("deletionGracePeriodSeconds", 0)
                names = new["metadata"].setdefault("finalizers", [])
                if "propagationPolicy" in options:  # counts more than what the object says itself
                    names[:] = [name for name in names if name not in (_FOREGROUND, _ORPHAN)]
                names.extend(name for name in held if name not in names)
                if target.resource == "namespaces":
                    new["status"]["phase"] = "Terminating"
                    if "kubernetes" not in names:
                        names.append("kubernetes")

            kept = self.store.edit(target.resource, found, mark)
            return kept if kept is not None else _gone(target, metadata)

    def _delete_pod(self, found: Object, options: Mapping[str, Any]) -> Object:
        asked = options.get("gracePeriodSeconds")
        grace = found["spec"]["terminationGracePeriodSeconds"] if asked is None else int(asked)
        over = found["status"].get("phase") in ("Succeeded", "Failed")
        unbound = not found["spec"].get("nodeName")
        if unbound or over:
            grace = 0

        def mark(new: Object) -> None:
            metadata = new["metadata"]
            earlier = metadata.get("deletionGracePeriodSeconds")
            shorter = grace if earlier is None else min(grace, earlier)
            due = self.store.clock.now() + timedelta(seconds=shorter)
            if earlier is None or shorter < earlier:
                metadata["deletionTimestamp"] = stamp(due)
            metadata["deletionGracePeriodSeconds"] = shorter

        kept = self.store.edit("pods", found, mark)
        return kept or found

    def _held(self, target: Target, options: Mapping[str, Any]) -> list[str]:
        policy = options.get("propagationPolicy")
        if policy not in (None, "Foreground", "Background", "Orphan"):
            raise ApiError(422, f'propagationPolicy: Invalid value: "{policy}"')
        if policy is None and target.resource == "jobs":
            # batch/v1 keeps what its first clients relied upon: dependents stay.
            policy = "Orphan"
            self.warnings.append("child pods are preserved by default when jobs are deleted")
        return {"Foreground": [_FOREGROUND], "Orphan": [_ORPHAN]}.get(policy or "", [])

    def _change(self, target: Target, old: Object, new: Object) -> Object:
        metadata, before = new["metadata"], old["metadata"]
        version = metadata.get("resourceVersion")
        if version and version != before["resourceVersion"]:
            raise ApiError(
                409, f'Operation cannot be fulfilled on {target.resource} "{target.name}": the '
                "object has been modified; please apply your changes to the latest version"
            )  # fmt: skip
        if metadata.get("uid", before["uid"]) != before["uid"]:
            raise ApiError(409, "Precondition failed: UID in precondition does not match")
        for owned in (
            "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
            "generation", "name", "namespace",
        ):  # fmt: skip
            metadata.pop(owned, None)
            if owned in before:
                metadata[owned] = before[owned]
        if target.sub == "status":
            new = {**old, "status": new.get("status", {})}
        elif "status" in old:
            new["status"] = old["status"]
        if "deletionTimestamp" in before:
            added = set(metadata.get("finalizers") or ()) - set(before.get("finalizers") or ())
            if added:
                raise ApiError(
                    422, "metadata.finalizers: Forbidden: no new finalizers can be added"
                )
        if not new["metadata"].get("finalizers"):
            new["metadata"].pop("finalizers", None)
        self._refuse(target, before["name"], refusals.of_change(target.resource, old, new))
        return self.store.put(target.resource, {**old, **new}) or new

    def _decoded(self, target: Target, body: Any, query: Mapping[str, str]) -> Object:
        if not isinstance(body, dict):
            raise ApiError(400, "the object provided is unrecognized")
        try:
            warned = decode(target.resource, body, query.get("fieldValidation", "Warn"))
        except DecodingError as error:
            raise ApiError(400, str(error)) from None
        except RequiredError as error:
            raise ApiError(422, str(error)) from None
        self.warnings.extend(warned)
        cleaned: Object = json.loads(json.dumps(body), object_hook=_without_nulls)
        return cleaned

    def _refuse(self, target: Target, name: str, causes: list[str]) -> None:
        if causes:
            raise ApiError(422, f'{target.resource} "{name}" is invalid: {"; ".join(causes)}')

    def _place(self, target: Target, metadata: Object) -> None:
        if target.resource in CLUSTER_WIDE:
            return
        if metadata.setdefault("namespace", target.namespace) != target.namespace:
            raise ApiError(
                400, "the namespace of the provided object does not match the namespace sent on "
                "the request"
            )  # fmt: skip

    def _check_room(self, target: Target) -> None:
        if target.resource in CLUSTER_WIDE:
            return
        room = self.store.find("namespaces", None, target.namespace or "")
        if room is None:
            raise ApiError(404, f'namespaces "{target.namespace}" not found')
        if "deletionTimestamp" in room["metadata"]:
            raise ApiError(403, f"namespace {target.namespace} is being terminated")

    def _check_preconditions(
        self, target: Target, found: Object, wanted: Mapping[str, str]
    ) -> None:
        for key in ("uid", "resourceVersion"):
            if key in wanted and wanted[key] != found[key]:
                raise ApiError(
                    409, f"Precondition failed: {key} in precondition: {wanted[key]}, {key} in "
                    f"object meta: {found[key]}"
                )  # fmt: skip

    def _rest(self, token: str) -> tuple[int, list[Object]]:
        version, rest = self._pages.pop(token, (-1, []))
        if version < self.store.oldest:
            raise ApiError(
                410, "The provided continue parameter is too old to display a consistent list"
            )
        return version, rest


def _without_nulls(value: Object) -> Object:
    return {key: each for key, each in value.items() if each is not None}


def _version(resource: str) -> str:
    return {"jobs": "batch/v1", "networkpolicies": "networking.k8s.io/v1"}.get(resource, "v1")


def _gone(target: Target, metadata: Object) -> Object:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"name": metadata["name"], "kind": target.resource, "uid": metadata["uid"]},
    }  # fmt: skip
