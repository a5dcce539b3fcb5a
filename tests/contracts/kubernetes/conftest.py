"""The cluster that this suite runs on: the fake cluster, or the one of TACITURN_TEST_KUBECONFIG.

    TACITURN_TEST_KUBECONFIG=~/.kube/config pytest tests/contracts/kubernetes

makes a namespace of its own and removes it. TACITURN_TEST_IMAGE is an image with Python that the
cluster can run (python:3.12-slim). Tests that need accidents or an autoscaler of ours ask for the
fixture `fake`, and are skipped elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import (
    KUBECONFIG,
    SPEED,
    ClusterWorld,
    EventRecorder,
    with_namespace,
)
from taciturn.server.launchers.kubernetes.monitor import Monitor
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings

_LONGEST_S = 1800  # of a test on a cluster that is not told how fast to be


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a real cluster, images are pulled, and failed pods wait before they are replaced."""
    for item in items:
        if KUBECONFIG is not None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(_LONGEST_S))


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[ClusterWorld]:
    """A cluster with an empty namespace."""
    if KUBECONFIG is None:
        tls = getattr(request.module, "TLS", False)
        with FakeCluster(speed=SPEED, tls=tls) as fake:
            yield from with_namespace(fake.kubeconfig, fake)
            assert not fake.broken + fake.server.broken
    else:
        yield from with_namespace(Path(KUBECONFIG), None)


@pytest.fixture
def fake(world: ClusterWorld) -> FakeCluster:
    """For tests that cause what a real cluster cannot be made to do."""
    if world.fake is None:
        pytest.skip("needs the fake cluster")
    return world.fake


@pytest.fixture
def monitor(world: ClusterWorld) -> Iterator[Callable[..., tuple[Monitor, EventRecorder]]]:
    """Makes monitors, and stops them."""
    running: list[Monitor] = []

    def make(settings: KubernetesSettings, **more: Any) -> tuple[Monitor, EventRecorder]:
        recorder = EventRecorder()
        made = Monitor(
            world.cluster, settings, recorder, clock=world.now, tick_s=world.reading(), **more
        )
        made.start()
        running.append(made)
        assert made.ready.wait(world.patience_s)
        return made, recorder

    yield make
    for each in running:
        each.stop()
