"""The whole fake cluster, and the accidents that tests cause in it."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import yaml

from fake_kubernetes.api import Api
from fake_kubernetes.autoscaler import Autoscaler, Group
from fake_kubernetes.certificates import Certificates
from fake_kubernetes.clock import Clock
from fake_kubernetes.garbage import GarbageCollector
from fake_kubernetes.http import Server, serve
from fake_kubernetes.jobs import JobController
from fake_kubernetes.kubelet import Kubelet, started_at
from fake_kubernetes.scheduler import Scheduler
from fake_kubernetes.store import Object, Store

_STATIC = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "500Gi", "pods": "500"}


class FakeCluster:
    """A cluster in this process; a context manager.

    Args:
        host: variables that processes of pods get besides the pod's own, such as PYTHONPATH.
        static_nodes: CPU nodes that are always there.
        tls: the API server is encrypted and wants a client's certificate, as every real one.
    """

    def __init__(
        self, *, speed: float = 20.0, host: Mapping[str, str] | None = None, static_nodes: int = 1,
        tls: bool = False,
    ) -> None:  # fmt: skip
        self.clock = Clock(speed)
        self.store = Store(self.clock)
        self.folder = Path(tempfile.mkdtemp(prefix="fake-kubernetes-"))
        self.kubelet = Kubelet(self.store, self.folder / "pods", host or {})
        self.api = Api(self.store)
        self.autoscaler = Autoscaler(self.store, self.preempt)
        self.certificates = Certificates(self.folder / "certificates") if tls else None
        context = self.certificates.context() if self.certificates else None
        self.server = Server(self.api, self.kubelet.logs, context=context)
        self.garbage = GarbageCollector(self.store)
        self.controllers = [
            JobController(self.store), self.garbage, self.autoscaler, Scheduler(self.store),
            self.kubelet,
        ]  # fmt: skip
        self.broken: list[BaseException] = []
        self._over = threading.Event()
        for name in ("default", "kube-system"):
            self.store.add("namespaces", {
                "kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name},
                "spec": {}, "status": {"phase": "Active"},
            })  # fmt: skip
        for number in range(static_nodes):
            self.store.add("nodes", _static(f"cpu-{number}"))

    def __enter__(self) -> FakeCluster:
        serve(self.server)
        self._loop = threading.Thread(target=self._run, daemon=True)
        self._loop.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._loop.join()
        self.server.shutdown()
        self.server.cut()
        self.server.server_close()
        self.kubelet.close()

    @property
    def kubeconfig(self) -> Path:
        """A file with which any client finds the cluster."""
        path = self.folder / "kubeconfig"
        address = f"127.0.0.1:{self.server.server_address[1]}"
        cluster: Object = {"server": f"http://{address}"}
        user: Object = {"token": "fake-kubernetes"}
        if self.certificates is not None:
            cluster = {"server": f"https://{address}",
                       "certificate-authority-data": self.certificates.data("ca.crt")}  # fmt: skip
            user = {"client-certificate-data": self.certificates.data("client.crt"),
                    "client-key-data": self.certificates.data("client.key")}  # fmt: skip
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "somebody", "user": user}],
            "contexts": [
                {"name": "fake", "context": {"cluster": "fake", "user": "somebody"}}
            ],
        }))  # fmt: skip
        return path

    def add_group(self, group: Group) -> Group:
        """Nodes that the autoscaler may make."""
        with self.store.lock:
            self.autoscaler.groups.append(group)
        return group

    def kill(self, pod: str, namespace: str = "default") -> None:
        """`kill -9` of everything in a pod."""
        found = self.store.find("pods", namespace, pod)
        if found is not None:
            self.kubelet.kill(found)

    def out_of_memory(self, pod: str, namespace: str = "default") -> None:
        """The kernel ends a pod that takes too much."""
        found = self.store.find("pods", namespace, pod)
        assert found is not None
        self.kubelet.out_of_memory.add(found["metadata"]["uid"])
        self.kubelet.kill(found)

    def preempt(self, node: str) -> None:
        """The cloud takes a node back: its agent ends the pods, then it is gone."""
        with self.store.lock:
            for pod in self._pods_on(node):
                self.kubelet.kill(pod, signal.SIGTERM)
                self.store.edit("pods", pod, self._disrupted)
                self.kubelet.kill(pod)
            self._remove(node)

    def lose(self, node: str) -> None:
        """A node is gone from one moment to the next, and nobody was told."""
        with self.store.lock:
            for pod in self._pods_on(node):
                self.kubelet.kill(pod)
                self.kubelet.containers.pop(pod["metadata"]["uid"], None)
            self._remove(node)

    def die(self, node: str) -> None:
        """A node's agent says nothing any more. Its pods are said to run, then to be ending, until
        the node is removed; what becomes of their containers, nobody can see."""
        found = self.store.find("nodes", None, node)
        assert found is not None
        told = {
            "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
            "lastTransitionTime": self.clock.stamp(),
        }  # fmt: skip
        self.store.edit("nodes", found, lambda new: new["status"].update(conditions=[told]))

    def restart_api(self, down_s: float = 0.0) -> None:
        """All connections break, history is forgotten, and for a while nobody answers."""
        self.store.compact()
        if down_s:
            self.server.failures.extend([503] * 3)
        self.server.cut()
        time.sleep(down_s)

    def _pods_on(self, node: str) -> list[Object]:
        return [pod for pod in self.store.all("pods") if pod["spec"].get("nodeName") == node]

    def _disrupted(self, pod: Object) -> None:
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            return
        now = self.clock.stamp()
        pod["status"] |= {"phase": "Failed", "reason": "Terminated"}
        pod["status"].setdefault("conditions", []).append({
            "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
            "message": "Pod was terminated in response to imminent node shutdown.",
            "lastTransitionTime": now,
        })  # fmt: skip
        for each in pod["status"].get("containerStatuses") or ():
            ended = {"exitCode": 137, "reason": "Error", "finishedAt": now}
            each["state"] = {"terminated": {**ended, "startedAt": started_at(pod) or now}}

    def _remove(self, name: str) -> None:
        found = self.store.find("nodes", None, name)
        if found is not None:
            self.store.remove("nodes", found)

    def _run(self) -> None:
        while not self._over.is_set():
            with self.store.lock:
                version = self.store.version
                try:
                    for controller in self.controllers:
                        controller.reconcile()
                except Exception as error:
                    self.broken.append(error)
                    raise
                quiet = version == self.store.version
                self.store.changed.wait(0.03 if quiet else 0.005)


def _static(name: str) -> Object:
    return {
        "kind": "Node", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "capacity": dict(_STATIC), "allocatable": dict(_STATIC),
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }  # fmt: skip
