"""The few calls to the API server. Each may be repeated: what is asked twice happens once.

What is sent are the official client's models, which refuse an unknown field before anything leaves;
what comes back is read as plain JSON, so that a server that is newer than the client is understood.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import config as configuration
from kubernetes.client import ApiClient, ApiException, Configuration
from pydantic import BaseModel
from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_exponential

from taciturn.errors import SpecError
from taciturn.server.launchers.base import LaterError, LaunchError, OutageError

Object = Mapping[str, Any]

_AWAY = (401, 408, 429, 500, 502, 503, 504)
_QUOTA = ("exceeded quota", "status unknown for quota")
_PATIENCE_S, _FIRST_WAIT_S, _LONGEST_WAIT_S = 6.0, 0.2, 5.0
_TIMEOUT_S = (5.0, 30.0)  # to connect, and to answer
_PAGE = 250
_MERGE = "application/merge-patch+json"


class Kind(StrEnum):
    """Kind of an object, by the path that it has in its namespace."""

    JOBS = "jobs"
    PODS = "pods"
    SERVICES = "services"
    SECRETS = "secrets"
    CONFIG_MAPS = "configmaps"
    POLICIES = "networkpolicies"
    EVENTS = "events"
    NODES = "nodes"

    @property
    def group(self) -> str:
        """The path of its API group."""
        return {"jobs": "/apis/batch/v1", "networkpolicies": "/apis/networking.k8s.io/v1"}.get(
            self.value, "/api/v1"
        )


class ClusterError(LaunchError):
    """The API server refuses, or cannot be reached.

    Attributes:
        status: of HTTP; 0 where the API server gave no answer.
        reason: the API server's word for it, such as AlreadyExists.
    """

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class ClusterUnreachableError(ClusterError, OutageError):
    """No answer, or one that says that the API server cannot do its work now."""


class ContendedError(ClusterError, LaterError):
    """409 Conflict: somebody else changed what this was about, such as a quota, meanwhile."""

    text = "the cluster is too busy to make a worker"


class QuotaError(ClusterError, LaterError):
    """403, since the namespace's quota has no room now."""

    code = "provisioning.quota"
    text = "the quota of the cluster's namespace has no room for another worker"


class GoneError(ClusterError):
    """410: what was asked to go on from is forgotten; list again."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One namespace of a cluster."""

    api: ApiClient
    namespace: str

    @classmethod
    def connect(cls, namespace: str, kubeconfig: Path | None = None) -> Cluster:
        """Connect by a file, from within a pod, or by the user's own configuration.

        Raises:
            SpecError: there is none.
        """
        settings = Configuration()
        settings.retries = False  # urllib3's own would be unseen, and fill the log with warnings
        try:
            if kubeconfig is not None:
                configuration.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
            else:
                configuration.load_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except configuration.ConfigException as error:
            raise SpecError(
                f"no cluster: {error}; run in a pod, or set KUBECONFIG to a file"
            ) from None
        return cls(ApiClient(settings), namespace)

    def get(self, kind: Kind, name: str) -> Object | None:
        """One object; None if there is none of that name."""
        try:
            return self._call("GET", self._path(kind, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, kind: Kind, *, labels: str = "", fields: str = "", everywhere: bool = False
    ) -> tuple[list[Object], str]:
        """Objects, page by page, and the version that they are of."""
        query = {"limit": str(_PAGE), "labelSelector": labels, "fieldSelector": fields}
        query = {name: value for name, value in query.items() if value}
        path = self._path(kind, everywhere=everywhere)
        objects: list[Object] = []
        token = ""
        while True:
            try:
                page = self._call("GET", path, {**query, **({"continue": token} if token else {})})
            except GoneError:
                objects, token = [], ""  # it took too long: from the start
                continue
            objects += page.get("items") or []
            token = page["metadata"].get("continue") or ""
            if not token:
                return objects, page["metadata"]["resourceVersion"]

    def create(self, kind: Kind, manifest: BaseModel) -> Object | None:
        """A new object; None if there is one of that name."""
        try:
            body = self.api.sanitize_for_serialization(manifest)  # type: ignore[no-untyped-call]
            return self._call("POST", self._path(kind), {"fieldValidation": "Strict"}, body)
        except ClusterError as error:
            # A server answers 409 also where a quota's or another object's update lost a race: then
            # nothing was made.
            if error.reason == "AlreadyExists":
                return None
            raise

    def patch(self, kind: Kind, name: str, change: Mapping[str, Any]) -> Object | None:
        """A merge patch; None if the object is gone, or the change names another one's uid."""
        query = {"fieldValidation": "Strict"}
        try:
            return self._call("PATCH", self._path(kind, name), query, dict(change), _MERGE)
        except ClusterError as error:
            if error.status == 404 or _of_another_uid(error):
                return None
            raise

    def delete(
        self, kind: Kind, name: str, *, uid: str | None = None, grace_s: int | None = None
    ) -> None:
        """Does not mind if it is gone. What depends on a Job goes before it.

        Args:
            uid: only the object that has it, not another one of the same name.
        """
        policy = "Foreground" if kind is Kind.JOBS else "Background"
        body: dict[str, Any] = {"propagationPolicy": policy}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            self._call("DELETE", self._path(kind, name), None, body)
        except ClusterError as error:
            if error.status != 404 and not _of_another_uid(error):
                raise

    def watch(
        self, kind: Kind, version: str, *, labels: str = "", everywhere: bool = False,
        timeout_s: float = 300.0, on_response: Callable[[Any], None] = lambda response: None,
    ) -> Iterator[tuple[str, Object]]:  # fmt: skip
        """Changes after a version, bookmarks included, until the server ends it.

        Args:
            on_response: takes the response, whose `close` from another thread ends the watch.

        Raises:
            GoneError: the version is forgotten.
            ClusterError: the connection broke.
        """
        query = {
            "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
            "timeoutSeconds": str(round(timeout_s)),
            **({"labelSelector": labels} if labels else {}),
        }  # fmt: skip
        path = self._path(kind, everywhere=everywhere)
        try:
            response = self._send("GET", path, query, None, None, (_TIMEOUT_S[0], timeout_s + 30))
            on_response(response.response)
            if response.status != 200:
                raise _refusal(response.status, response.read())
            for line in _lines(response.response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(int(event["object"].get("code") or 500), event["object"])
                yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterUnreachableError(
                0, f"the watch of {kind} broke: {type(error).__name__}"
            ) from None

    def _path(self, kind: Kind, name: str = "", *, everywhere: bool = False) -> str:
        room = "" if everywhere or kind is Kind.NODES else f"/namespaces/{self.namespace}"
        return f"{kind.group}{room}/{kind}{f'/{name}' if name else ''}"

    def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None,
        body: Any = None, media_type: str = "application/json",
    ) -> dict[str, Any]:  # fmt: skip
        """One request; again, for a few seconds, while the server is overloaded, cannot be reached,
        or was asked by somebody else at the same time."""
        retrying = Retrying(
            retry=retry_if_exception_type((ClusterUnreachableError, ContendedError)),
            wait=wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=stop_before_delay(_PATIENCE_S),
            reraise=True,
        )
        return retrying(self._once, method, path, query, body, media_type)

    def _once(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any,
        media_type: str,
    ) -> dict[str, Any]:  # fmt: skip
        try:
            response = self._send(method, path, query, body, media_type, _TIMEOUT_S)
            data = response.read()
            if 200 <= response.status < 300:
                answer: dict[str, Any] = json.loads(data)
                return answer
        except (urllib3.exceptions.HTTPError, OSError, ValueError, ApiException) as error:
            raise ClusterUnreachableError(0, f"{method} {path}: {type(error).__name__}") from None
        raise _refusal(response.status, data)

    def _send(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any,
        media_type: str | None, timeout: tuple[float, float],
    ) -> Any:  # fmt: skip
        headers = {"Accept": "application/json"}
        if body is not None and media_type:
            headers["Content-Type"] = media_type
        request = self.api.param_serialize(
            method=method,
            resource_path=path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        return self.api.call_api(*request, _request_timeout=timeout)


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for piece in response.stream(amt=None, decode_content=False):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line for line in lines if line.strip())


def _refusal(status: int, data: bytes) -> ClusterError:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("kind") != "Status":
        # Of a proxy on the way, say: its 404 does not mean that an object is not there.
        return ClusterUnreachableError(0, f"{status}, and not from an API server")
    return _error(status, answer)


def _error(status: int, answer: Mapping[str, Any]) -> ClusterError:
    reason, message = str(answer.get("reason", "")), str(answer.get("message", ""))
    kind = GoneError if status == 410 else ClusterError
    if status in _AWAY:
        kind = ClusterUnreachableError
    elif status == 409 and reason == "Conflict" and not _names_uid(message):
        kind = ContendedError
    elif status == 403 and any(words in message for words in _QUOTA):
        kind = QuotaError
    return kind(status, f"{status} {reason}: {message}"[:2000], reason)


def _of_another_uid(error: ClusterError) -> bool:
    """True if it was refused because an object of that name is not the one that was meant: 409 of
    a deletion, 422 of a patch."""
    return error.status in (409, 422) and _names_uid(str(error))


def _names_uid(message: str) -> bool:
    return "precondition" in message.lower() or "metadata.uid" in message


def parse_time(text: str) -> datetime:
    """Time as Kubernetes writes it: RFC 3339 in UTC."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
