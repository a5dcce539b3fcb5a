"""A cluster to test on: the fake cluster, or the one of TACITURN_TEST_KUBECONFIG.

    TACITURN_TEST_KUBECONFIG=~/.kube/config pytest tests/contracts/kubernetes

makes a namespace of its own and removes it. TACITURN_TEST_IMAGE is an image with Python that the
cluster can run (python:3.12-slim). Tests that need accidents or an autoscaler of ours ask for the
fixture `fake`, and are skipped elsewhere.
"""

from __future__ import annotations

import os
import queue
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes import config as kubeconfig

from fake_kubernetes.cluster import FakeCluster
from taciturn.server.launchers.base import Order
from taciturn.server.launchers.kubernetes.client import Cluster
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.sizing import Machine, Need
from taciturn.wire.events import NodeEvent

KUBECONFIG = os.environ.get("TACITURN_TEST_KUBECONFIG")
IMAGE = os.environ.get("TACITURN_TEST_IMAGE", "python:3.12-slim")
PATIENCE_S = float(os.environ.get("TACITURN_TEST_PATIENCE_S", "180"))
SPEED = 40.0

SMALL = Pool(
    name="small", cpu="50m", memory="128Mi", ephemeral_storage="100Mi", whole_node=False,
    scales=False,
)  # fmt: skip


@dataclass
class ClusterWorld:
    """Cluster, and a namespace in it for the test alone."""

    path: Path
    namespace: str
    fake: FakeCluster | None

    def __post_init__(self) -> None:
        self.api = kubeconfig.new_client_from_config(str(self.path))
        self.core, self.batch = client.CoreV1Api(self.api), client.BatchV1Api(self.api)
        self.cluster = Cluster.connect(self.namespace, self.path)

    def make_account(self) -> None:
        """The namespace's own; a real cluster makes it, a moment later."""
        account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="default"))
        with suppress(client.ApiException):
            self.core.create_namespaced_service_account(self.namespace, account)

    @property
    def patience_s(self) -> float:
        """Seconds until something counts as not happening."""
        return 120.0 if self.fake else PATIENCE_S

    @property
    def watch_s(self) -> int:
        """Seconds that a watch is open which shall see what has just happened."""
        return 1 if self.fake else 5

    def now(self) -> datetime:
        """The cluster's time."""
        return self.fake.clock() if self.fake else datetime.now(UTC)

    def settings(self, code: str = "pass", **more: Any) -> KubernetesSettings:
        """A launcher whose workers run a line of Python."""
        defaults: dict[str, Any] = {
            "namespace": self.namespace, "instance": f"test-{secrets.token_hex(4)}", "image": IMAGE,
            "command": ("python", "-c", code), "pools": (SMALL,), "shared_memory": "16Mi",
            "grace_period_s": 20, "deadline_s": 600, "own_signing_key": False,
        }  # fmt: skip
        return KubernetesSettings(**{**defaults, **more})

    def launcher(self, settings: KubernetesSettings, **machine: Any) -> KubernetesLauncher:
        """Return a launcher on the first pool of the settings."""
        need = Need(Machine(settings.pools[0], **machine))
        return KubernetesLauncher(self.cluster, settings, lambda job_id: need)

    def pods(self, **labels: str) -> list[client.V1Pod]:
        """Pods with these labels."""
        selector = ",".join(f"{name.replace('_', '-')}={value}" for name, value in labels.items())
        return self.core.list_namespaced_pod(self.namespace, label_selector=selector).items

    def log(self, pod: str) -> str:
        """Return the log of a pod; empty where its container is not there yet."""
        try:
            return str(self.core.read_namespaced_pod_log(pod, self.namespace))
        except client.ApiException:
            return ""

    def until(self, what: Callable[[], Any], patience_s: float | None = None) -> Any:
        """Wait for something to be true; returns it."""
        end = time.monotonic() + (patience_s or self.patience_s)
        while not (result := what()):
            assert time.monotonic() < end, f"{what} did not come true"
            time.sleep(0.02 if self.fake else 0.5)
        return result

    def reading(self) -> float:
        """The suite's pace."""
        return 0.02 if self.fake else 0.5


@dataclass
class EventRecorder:
    """Record the events of a monitor."""

    events: list[tuple[str, NodeEvent]] = field(default_factory=list)
    news: queue.SimpleQueue[NodeEvent] = field(default_factory=queue.SimpleQueue)

    def __call__(self, handle: str, event: NodeEvent) -> None:
        self.events.append((handle, event))

    def codes(self) -> list[str]:
        """Return the codes in order."""
        return [event.code for _, event in self.events]

    def text(self, code: str) -> str:
        """The last text of a code; empty if there is none yet."""
        return next((event.text for _, event in reversed(self.events) if event.code == code), "")


def new_order(attempt: int = 1, **environment: str) -> Order:
    """A worker for a job that nobody has."""
    return Order(f"job_{secrets.token_hex(8)}", attempt, {"TACITURN_JOB": "x", **environment})


def with_namespace(path: Path, fake: FakeCluster | None) -> Iterator[ClusterWorld]:
    """A namespace of its own, removed at the end."""
    name = f"taciturn-test-{secrets.token_hex(4)}"
    world = ClusterWorld(path, name, fake)
    world.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
    world.make_account()
    try:
        yield world
    finally:
        world.core.delete_namespace(name)
