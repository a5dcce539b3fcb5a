"""A whole fit with the embedded model, by the real worker, on the fake cluster; killed on
its way. What it is told and what it may reach is what the launcher gives it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import SMALL, ClusterWorld, with_namespace
from taciturn.reports.privacy import PrivacyReport
from taciturn.server.launchers.base import Order, WorkerState
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.sizing import Machine, Need
from taciturn.wire.events import Stage, StageEvent
from taciturn.wire.jobs import DataRef

pytest.importorskip("taciturn.worker.job")

from worker.bridge import handler
from worker.fake_gateway import TOKEN, FakeGateway
from worker.jobs import facts, fit_job, notes, public, request, source, write

STEPS = 30
WORKER: dict[str, Any] = {
    "command": ("python", "-m", "taciturn.worker"), "pools": (SMALL,), "deadline_s": 86_400,
}  # fmt: skip


@pytest.fixture
def world(root: Path) -> Iterator[ClusterWorld]:
    with FakeCluster(speed=20, host={"PYTHONPATH": str(root / "src")}) as fake:
        yield from with_namespace(fake.kubeconfig, fake)


def on_a_claim(world: ClusterWorld, folder: Path) -> KubernetesLauncher:
    """Workspaces outlive the pod."""
    return world.launcher(world.settings(**WORKER, workspace_claim="workspaces"))


def in_a_store(world: ClusterWorld, folder: Path) -> KubernetesLauncher:
    """The next pod has an empty disk, and the owner's key from a Secret."""
    metadata = client.V1ObjectMeta(name="vault")
    key = client.V1Secret(metadata=metadata, string_data={"TACITURN_CHECKPOINT_KEY": "ab" * 32})
    world.core.create_namespaced_secret(world.namespace, key)
    store = {"checkpoint_url": f"file://{folder / 'store'}", "checkpoint_secret": "vault"}
    need = Need(Machine(SMALL), checkpoint_secret="vault")
    return KubernetesLauncher(world.cluster, world.settings(**WORKER, **store), lambda job_id: need)


@contextmanager
def served(gateway: FakeGateway) -> Iterator[Order]:
    """The gateway on a port of this machine, and the order of its job."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(gateway))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Order(
        gateway.assignment.job, 1,
        {
            "TACITURN_GATEWAY_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "TACITURN_JOB": gateway.assignment.job, "TACITURN_JOB_TOKEN": TOKEN,
        },
    )  # fmt: skip
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_public_text_is_learned_first(world: ClusterWorld, tmp_path: Path) -> None:
    """By one worker in one pod, which reads both: the rows, and the text that was declared."""
    base = facts("taciturn/tiny-medical")
    asked = request(base.name, steps=2, public_data="cases", data=DataRef(dataset="notes"))
    cases = [{"case": f"Case {i}: a cough."} for i in range(24)]
    text = public(write(cases, tmp_path / "cases.jsonl"), text_field="case")
    rows = source(write(notes(), tmp_path / "notes.jsonl"))
    job = fit_job(asked, base, rows).model_copy(update={"public_source": text})
    gateway = FakeGateway(job)
    with served(gateway) as order:
        launcher = on_a_claim(world, tmp_path)
        launcher.launch(order)
        over = (WorkerState.ENDED, WorkerState.ABSENT)
        world.until(lambda: launcher.status(order.handle) in over, patience_s=800)
    assert gateway.outcome.succeeded, gateway.incidents
    report = PrivacyReport.model_validate_json(gateway.files["privacy_report.json"])
    (learned,) = report.public_data
    assert (learned.name, learned.records) == ("cases", 24)
    assert [marks.public for marks in gateway.sources] == [True, False]
    assert gateway.charged_steps == report.steps


@pytest.mark.slow
@pytest.mark.parametrize("kept", [on_a_claim, in_a_store])
def test_a_fit_goes_through_a_cluster_and_a_kill(
    kept: Callable[[ClusterWorld, Path], KubernetesLauncher],
    world: ClusterWorld,
    tmp_path: Path,
) -> None:
    base = facts("taciturn/tiny-medical")
    asked = request(base.name, steps=STEPS, data=DataRef(dataset="notes"))
    gateway = FakeGateway(fit_job(asked, base, source(write(notes(), tmp_path / "notes.jsonl"))))
    launcher = kept(world, tmp_path)
    with served(gateway) as order:
        launcher.launch(order)
        world.until(lambda: gateway.charged_steps > 10, patience_s=800)
        (pod,) = world.pods(**{"taciturn.dev/job": order.job_id})
        assert world.fake is not None
        world.fake.kill(pod.metadata.name, world.namespace)
        over = (WorkerState.ENDED, WorkerState.ABSENT)
        world.until(lambda: launcher.status(order.handle) in over, patience_s=800)

    assert gateway.outcome.succeeded
    assert gateway.lease == 2
    assert len(world.pods(**{"taciturn.dev/job": order.job_id})) == 2
    assert Stage.RESUMED in [e.stage for e in gateway.events if isinstance(e, StageEvent)]
    store = tmp_path / "store"
    assert not store.exists() or list(store.iterdir()) == []
    report = PrivacyReport.model_validate_json(gateway.files["privacy_report.json"])
    plan = gateway.assignment.plan
    assert plan is not None
    assert plan.privacy is not None
    assert report.epsilon == pytest.approx(plan.privacy.epsilon, rel=1e-9)
    # What had been charged before the kill may have run: it is charged, and charged again.
    assert STEPS <= gateway.charged_steps <= 2 * STEPS
    log = world.core.read_namespaced_pod_log(pod.metadata.name, world.namespace)
    assert "cough" not in log
