"""The real gateway, the real worker, and the fake cluster: gateway and pods are killed in
the middle of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from kubernetes import client

import taciturn
from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import SMALL, ClusterWorld, with_namespace
from taciturn.demo import gateway as demo
from taciturn.demo.gateway import DemoGateway
from taciturn.sdk.job import Job
from taciturn.server.launchers.kubernetes.client import Kind
from taciturn.server.launchers.kubernetes.names import Labels
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
from taciturn.wire.events import NodeEvent
from taciturn.wire.jobs import JobState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UNIT = "json_extract_string(context, '$.patient_id')"
TEXT = "json_extract_string(context, '$.text') AS text"
STEPS = 40
KINDS = (Kind.JOBS, Kind.PODS, Kind.SERVICES, Kind.SECRETS, Kind.POLICIES, Kind.CONFIG_MAPS)


@dataclass
class Together:
    """A gateway whose workers are Jobs of the fake cluster."""

    world: ClusterWorld
    gateway: DemoGateway
    environment: dict[str, str]
    store: Path

    def kill(self) -> None:
        """`kill -9` of the gateway; its other processes go with the first."""
        self.gateway.process.kill()
        self.gateway.process.wait()

    def start(self) -> None:
        """The same gateway again."""
        with (self.gateway.folder / "gateway.log").open("ab") as log:
            self.gateway.process = subprocess.Popen(
                [sys.executable, "-m", "taciturn", "serve"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.until(self._answers)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.gateway.url}/v1/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    def until(self, what: Callable[[], Any], patience_s: float = 240) -> Any:
        return self.world.until(what, patience_s)

    def job(self, job_id: str) -> Job:
        return self.gateway.client("pia").job(job_id)

    def left(self) -> dict[str, list[str]]:
        chosen = Labels.selector(INSTANCE)
        found = {str(kind): self.world.cluster.list(kind, labels=chosen)[0] for kind in KINDS}
        return {kind: [e["metadata"]["name"] for e in each] for kind, each in found.items() if each}


INSTANCE = "e2e"


@pytest.fixture
def together(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    host = {"PYTHONPATH": str(root / "src"), "HF_HUB_OFFLINE": "1"}
    with FakeCluster(speed=20, host=host, tls=True) as fake:
        for world in with_namespace(fake.kubeconfig, fake):
            key = client.V1Secret(
                metadata=client.V1ObjectMeta(name="vault"),
                string_data={"TACITURN_CHECKPOINT_KEY": "ab" * 32},
            )
            world.core.create_namespaced_secret(world.namespace, key)
            settings = KubernetesSettings(
                namespace=world.namespace, instance=INSTANCE, pools=(SMALL_ENOUGH,),
                checkpoint_url=f"file://{tmp_path / 'store'}", checkpoint_secret="vault",
                image="python:3.12-slim", shared_memory="16Mi", ttl_s=200, grace_period_s=600,
            )  # fmt: skip
            config = tmp_path / "kubernetes.json"
            config.write_text(settings.model_dump_json())
            told = {
                "TACITURN_LAUNCHER": "kubernetes", "TACITURN_KUBERNETES_CONFIG": str(config),
                "KUBECONFIG": str(fake.kubeconfig), "TACITURN_LEASE_S": "5",
            }  # fmt: skip
            for name, value in told.items():
                monkeypatch.setenv(name, value)
            running = demo.start(n_patients=200)
            again = {
                **os.environ,
                "TACITURN_DATA_DIR": str(running.folder / "gateway"),
                "TACITURN_PORT": running.url.rpartition(":")[2],
                "TACITURN_TICK_S": "1",
                "TACITURN_SOURCE_PREFIXES": json.dumps([str(running.notes)]),
            }
            yield Together(world, running, again, tmp_path / "store")
            running.stop()
        assert not fake.broken + fake.server.broken


SMALL_ENOUGH = SMALL.model_copy(update={"memory": "16Gi"})  # for the plan of the embedded model


def begun(together: Together) -> Job:
    """A fit on a registered dataset, asked for."""
    olivia = together.gateway.client("olivia")
    mock = [{"id": "n1", "context": json.dumps({"text": "Mr Mock coughs.", "patient_id": "P1"})}]
    notes = olivia.add_dataset(
        "notes", str(together.gateway.notes), unit=UNIT, namespace="patients",
        units=together.gateway.units, columns=["id", "context"], epsilon=10, delta=1e-5, mock=mock,
    )  # fmt: skip
    olivia.grant("patients", "user:pia", epsilon=8, delta=1e-5)
    notes.wait()
    data = together.gateway.client("pia").dataset("notes").select(TEXT)
    model = taciturn.LLM("taciturn/tiny-medical")
    return model.fit(
        data, text_field="text", target_epsilon=3, steps=STEPS, batch_size=40, method="lora", r=2,
        max_tokens=64, wait=False,
    )  # fmt: skip


def codes(job: Job) -> list[str]:
    """What was told of its machines."""
    told = (numbered.event for numbered in job.events())
    return [event.code for event in told if isinstance(event, NodeEvent)]


def test_gateway_and_pods_die_in_the_middle_of_everything(together: Together) -> None:
    job = begun(together)
    assert job is not None
    world, mark = together.world, f"taciturn.dev/job={job.id}"
    pods: dict[str, str] = {}

    def running() -> str | None:
        for pod in world.core.list_namespaced_pod(world.namespace, label_selector=mark).items:
            pods[pod.metadata.uid] = pod.metadata.name
            if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None:
                return str(pod.metadata.name)
        return None

    def trained(steps: int) -> bool:
        return any(int(path.stem) >= steps for path in together.store.rglob("*.manifest"))

    # Before the Job is there, or just after: the next gateway finishes the launch.
    together.kill()
    together.start()
    first = together.until(running)
    together.until(lambda: trained(10))
    # The worker goes on while there is no gateway, as far as it may; then its pod dies as well.
    together.kill()
    assert world.fake is not None
    world.fake.kill(first, world.namespace)
    together.until(lambda: running() not in (None, first))
    together.start()
    together.until(lambda: together.job(job.id).status.over)
    done = together.job(job.id)
    assert done.status is JobState.SUCCEEDED, done
    # One attempt, two pods: the second went on from the first one's checkpoint.
    jobs = world.batch.list_namespaced_job(world.namespace, label_selector=mark).items
    assert len(jobs) <= 1
    running()
    assert len(pods) == 2, pods
    assert "running" in codes(done)
    assert together.gateway.client("axel").auditor.verify_ledger()["ok"]
    (budget,) = together.gateway.client("olivia").budgets()
    assert 0 < budget.charged == budget.taken
    # In the end nothing is left, neither in the cluster nor in the store.
    together.until(lambda: not together.left())
    together.until(lambda: list(together.job(job.id).machines()))
    assert [path.name for path in together.store.iterdir() if path.name != "canaries"] == []


def test_a_cancelled_job_leaves_nothing(together: Together) -> None:
    job = begun(together)
    assert job is not None
    world, mark = together.world, f"taciturn.dev/job={job.id}"
    together.until(lambda: any(
        pod.status.phase == "Running"
        for pod in world.core.list_namespaced_pod(world.namespace, label_selector=mark).items
    ))  # fmt: skip
    together.job(job.id).cancel()
    together.until(lambda: together.job(job.id).status is JobState.CANCELLED)
    together.until(lambda: not together.left())
    together.gateway.process.terminate()
    assert together.gateway.process.wait(30) == 0
