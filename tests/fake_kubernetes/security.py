"""The `restricted` Pod Security Standard, as the API server's own admission enforces it in
namespaces that are labelled so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ENFORCED = "pod-security.kubernetes.io/enforce"

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def violations(namespace: dict[str, Any] | None, spec: dict[str, Any]) -> list[str]:
    """Return what a pod may not have in this namespace."""
    labels = ((namespace or {}).get("metadata") or {}).get("labels") or {}
    return list(_restricted(spec)) if labels.get(ENFORCED) == "restricted" else []


def _restricted(spec: dict[str, Any]) -> Iterator[str]:
    pod = spec.get("securityContext") or {}
    if any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
        yield "host namespaces"
    for volume in spec.get("volumes") or ():
        if set(volume) - {"name"} - _VOLUMES:
            yield f'restricted volume types (volume "{volume["name"]}")'
    for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
        own = {**pod, **(container.get("securityContext") or {})}
        capabilities = own.get("capabilities") or {}
        if own.get("privileged"):
            yield "privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation != false"
        if "ALL" not in (capabilities.get("drop") or ()):
            yield "unrestricted capabilities"
        if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            yield "unrestricted capabilities"
        if own.get("runAsNonRoot") is not True:
            yield "runAsNonRoot != true"
        if own.get("runAsUser") == 0:
            yield "runAsUser=0"
        if (own.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "seccompProfile"
