"""One pod's container as a process of this machine, with its volumes as folders."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fake_kubernetes.store import Object, Store

_HOST = ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ConfigError(Exception):
    """CreateContainerConfigError: what the container needs is not there."""


class Container:
    """Runs the first container of a pod."""

    def __init__(self, store: Store, pod: Object, folder: Path, host: Mapping[str, str]) -> None:
        self.folder, self.log = folder, folder / "log"
        spec, namespace = pod["spec"], pod["metadata"]["namespace"]
        container = spec["containers"][0]
        environment = _environment(store, pod, container, namespace)
        folder.mkdir(parents=True)
        self._paths = _mounts(store, spec, container, namespace, folder)
        self._names = _names(store, pod, namespace)
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        words = [self._local(_expanded(word, environment)) for word in words]
        if words and words[0] in ("python", "python3"):
            words[0] = sys.executable
        base = {name: os.environ[name] for name in _HOST if name in os.environ}
        told = {name: self._local(value) for name, value in environment.items()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                cwd=self._local(container.get("workingDir") or str(folder)),
                env={**base, **host, **told, "HOSTNAME": spec.get("hostname", "pod")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """Exit code as a container runtime states it; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole container."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def clean(self) -> None:
        """Remove its volumes; the log stays."""
        self.signal(signal.SIGKILL)
        for each in self.folder.iterdir():
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)

    def _local(self, text: str) -> str:
        """Paths and host names as they are on this machine."""
        if self._paths:  # in one go, for what a path becomes may begin like another one
            mounted = "|".join(map(re.escape, self._paths))
            text = re.sub(rf"(?<![\w/.-])({mounted})(?=/|$|:)", self._real, text)
        for name in self._names:
            text = re.sub(
                rf"\b{re.escape(name)}(\.[a-z0-9-]+\.svc(\.[a-z0-9.-]+)?)?", "127.0.0.1", text
            )
        return text

    def _real(self, found: re.Match[str]) -> str:
        return str(self._paths[found[1]])


def _environment(store: Store, pod: Object, container: Object, namespace: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        reference = source.get("secretRef") or source.get("configMapRef")
        kind = "secrets" if "secretRef" in source else "configmaps"
        found |= _values(store, kind, namespace, reference["name"], reference.get("optional"))
    for variable in container.get("env") or ():
        if "value" in variable:
            found[variable["name"]] = _expanded(variable["value"], found)
        elif "valueFrom" in variable:
            found[variable["name"]] = _from(store, pod, variable["valueFrom"], namespace)
    return found


def _from(store: Store, pod: Object, source: Object, namespace: str) -> str:
    if "secretKeyRef" in source:
        reference = source["secretKeyRef"]
        values = _values(store, "secrets", namespace, reference["name"], None)
        return values[reference["key"]]
    path = source["fieldRef"]["fieldPath"]
    labelled = re.match(r"metadata\.(labels|annotations)\['(.+)'\]$", path)
    if labelled:
        return str(pod["metadata"][labelled[1]][labelled[2]])
    return {
        "metadata.name": pod["metadata"]["name"], "metadata.namespace": namespace,
        "metadata.uid": pod["metadata"]["uid"], "spec.nodeName": pod["spec"].get("nodeName", ""),
        "status.podIP": "127.0.0.1",
    }[path]  # fmt: skip


def _values(
    store: Store, kind: str, namespace: str, name: str, optional: bool | None
) -> dict[str, str]:
    found = store.find(kind, namespace, name)
    if found is None:
        if optional:
            return {}
        raise ConfigError(f'{kind.removesuffix("s")} "{name}" not found')
    data = found.get("data") or {}
    if kind == "configmaps":
        return dict(data)
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _mounts(
    store: Store, spec: Object, container: Object, namespace: str, folder: Path
) -> dict[str, Path]:
    volumes = {volume["name"]: volume for volume in spec.get("volumes") or ()}
    paths = {}
    for mount in container.get("volumeMounts") or ():
        volume = volumes[mount["name"]]
        real = folder / f"volume-{mount['name']}"
        if "persistentVolumeClaim" in volume:  # outlives the pod, and is the same for all
            claim = volume["persistentVolumeClaim"]["claimName"]
            real = folder.parent / f"claim-{claim}" / mount.get("subPath", "")
        real.mkdir(parents=True, exist_ok=True)
        if "secret" in volume:
            reference = volume["secret"]
            values = _values(
                store, "secrets", namespace, reference["secretName"], reference.get("optional")
            )
            for name, text in values.items():
                (real / name).write_text(text)
        paths[mount["mountPath"]] = real
    return dict(sorted(paths.items(), key=lambda item: -len(item[0])))


def _names(store: Store, pod: Object, namespace: str) -> list[str]:
    """Names of pods that a headless Service gives an address, as the cluster's DNS would."""
    subdomain = pod["spec"].get("subdomain")
    service = store.find("services", namespace, subdomain) if subdomain else None
    if service is None or service["spec"].get("clusterIP") != "None":
        return []
    wanted = (service["spec"].get("selector") or {}).items()
    return [
        f"{each['spec']['hostname']}.{subdomain}"
        for each in store.all("pods", namespace)
        if wanted <= each["metadata"]["labels"].items() and each["spec"].get("hostname")
    ]


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)
