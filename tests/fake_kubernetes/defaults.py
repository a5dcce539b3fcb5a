"""Defaults that the server adds to a new object."""

from __future__ import annotations

import base64
import binascii
import random
from typing import Any

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def suffix() -> str:
    """Five letters as generateName and Job pods get them."""
    return "".join(random.choices(_LETTERS, k=5))


def fill(resource: str, made: dict[str, Any]) -> None:
    """Defaults of spec and status."""
    if resource == "jobs":
        _job(made)
    elif resource == "pods":
        _pod(made["spec"])
        made["status"] = {"phase": "Pending", "qosClass": "Burstable"}
    elif resource == "secrets":
        _secret(made)
    elif resource == "services":
        made["spec"].setdefault("type", "ClusterIP")
        made["spec"].setdefault("clusterIP", f"10.96.0.{random.randint(2, 250)}")
        made["spec"].setdefault("sessionAffinity", "None")
        made["status"] = {"loadBalancer": {}}
    elif resource == "namespaces":
        made["status"] = {"phase": "Active"}
        made.setdefault("spec", {})["finalizers"] = ["kubernetes"]


def _job(made: dict[str, Any]) -> None:
    spec, uid = made["spec"], made["metadata"]["uid"]
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("suspend", False)
    spec.setdefault("manualSelector", None)
    spec.pop("manualSelector")
    replacement = "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed"
    spec.setdefault("podReplacementPolicy", replacement)
    mine = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": made["metadata"]["name"],
        "controller-uid": uid,
        "job-name": made["metadata"]["name"],
    }
    template = spec["template"]
    metadata = template.setdefault("metadata", None) or {}
    template["metadata"] = metadata
    metadata["labels"] = {**(metadata.get("labels") or {}), **mine}
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    made["metadata"]["labels"] = {**mine, **(made["metadata"].get("labels") or {})}
    _pod(template["spec"])
    made["status"] = {}


def _pod(spec: dict[str, Any]) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    for container in spec["containers"]:
        container.setdefault("imagePullPolicy", _pull_policy(container.get("image", "")))
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        resources = container.setdefault("resources", {})
        if "limits" in resources:
            resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}


def _pull_policy(image: str) -> str:
    tag = image.rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") and "@" not in image else "IfNotPresent"


def _secret(made: dict[str, Any]) -> None:
    """Raises ValueError: `data` is not base64."""
    made.setdefault("type", "Opaque")
    data = made.setdefault("data", {})
    for value in data.values():
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"illegal base64 data: {error}") from None
    for name, text in (made.pop("stringData", None) or {}).items():
        data[name] = base64.b64encode(text.encode()).decode()
