"""Machines that each worker had: written down in the cluster before anything can be forgotten.

One ConfigMap for a worker, owned by nobody: Job and pods go, and it stays until each of its nodes
is known to be gone. A gateway that restarts reads it and goes on waiting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kubernetes.client import models as k8s

from taciturn.server.launchers.kubernetes.client import Cluster, Kind, Object
from taciturn.server.launchers.kubernetes.names import Labels, Worker


@dataclass(frozen=True, slots=True)
class Use:
    """A node that a worker had.

    Attributes:
        since: RFC 3339; when the node was made, or where it was there before, when the pod came.
        over: when the worker was first seen to be over; empty before.
        warned: that it is still there was said.
        settled: how it ended was said.
    """

    node: str
    uid: str
    pool: str
    since: str
    over: str = ""
    warned: bool = False
    settled: bool = False


@dataclass
class Machines:
    """All uses that are not settled yet, here and in the cluster."""

    cluster: Cluster
    instance: str
    uses: dict[Worker, dict[str, Use]] = field(default_factory=dict)

    def load(self) -> None:
        """Read what an earlier gateway wrote down."""
        config_maps, _ = self.cluster.list(Kind.CONFIG_MAPS, labels=Labels.selector(self.instance))
        for config_map in config_maps:
            worker = Worker.labelled(config_map)
            if worker is not None:
                uses = self.uses.setdefault(worker, {})
                uses.update({name: _use(text) for name, text in _data(config_map).items()})

    def add(self, worker: Worker, use: Use) -> None:
        """Write a use down; first in the cluster."""
        if use.node in self.uses.get(worker, {}):
            return
        self._write(worker, {use.node: json.dumps(asdict(use))})
        self.uses.setdefault(worker, {})[use.node] = use

    def change(self, worker: Worker, use: Use, **values: Any) -> Use:
        """Write a change of a use down."""
        changed = replace(use, **values)
        self._write(worker, {use.node: json.dumps(asdict(changed))})
        self.uses[worker][use.node] = changed
        return changed

    def finish(self, worker: Worker) -> None:
        """The worker is over and all its uses are settled: nothing needs to be remembered."""
        self.cluster.delete(Kind.CONFIG_MAPS, worker.name)
        self.uses.pop(worker, None)

    def _write(self, worker: Worker, data: Mapping[str, str]) -> None:
        if self.cluster.patch(Kind.CONFIG_MAPS, worker.name, {"data": dict(data)}) is not None:
            return
        metadata = k8s.V1ObjectMeta(name=worker.name, labels=worker.labels(self.instance))
        manifest = k8s.V1ConfigMap(
            api_version="v1", kind="ConfigMap", metadata=metadata, data=dict(data)
        )
        self.cluster.create(Kind.CONFIG_MAPS, manifest)


def _data(config_map: Object) -> Mapping[str, str]:
    return config_map.get("data") or {}


def _use(text: str) -> Use:
    return Use(**json.loads(text))
