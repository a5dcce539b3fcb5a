"""The cluster that this suite runs on: the stand-in, or the one of TACITURN_TEST_KUBECONFIG.

    TACITURN_TEST_KUBECONFIG=~/.kube/config pytest tests/contracts/kubernetes

makes a namespace of its own and removes it. TACITURN_TEST_IMAGE is an image with Python that the
cluster can run (python:3.12-slim). Tests that need accidents or an autoscaler of ours ask for the
fixture `stand_in`, and are skipped elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_kubernetes.cluster import StandIn
from kubeworld import KUBECONFIG, SPEED, Telling, World, with_namespace
from taciturn.server.launchers.kubernetes.monitor import Monitor
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings

_LONGEST_S = 1800  # of a test on a cluster that is not told how fast to be


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a real cluster, images are pulled, and failed pods wait before they are replaced."""
    for item in items:
        if KUBECONFIG is not None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(_LONGEST_S))


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A cluster with an empty namespace."""
    if KUBECONFIG is None:
        tls = getattr(request.module, "TLS", False)
        with StandIn(speed=SPEED, tls=tls) as stand_in:
            yield from with_namespace(stand_in.kubeconfig, stand_in)
            assert not stand_in.broken + stand_in.server.broken
    else:
        yield from with_namespace(Path(KUBECONFIG), None)


@pytest.fixture
def stand_in(world: World) -> StandIn:
    """For tests that cause what a real cluster cannot be made to do."""
    if world.stand_in is None:
        pytest.skip("needs the stand-in")
    return world.stand_in


@pytest.fixture
def monitor(world: World) -> Iterator[Callable[..., tuple[Monitor, Telling]]]:
    """Makes monitors, and stops them."""
    running: list[Monitor] = []

    def make(settings: KubernetesSettings, **more: Any) -> tuple[Monitor, Telling]:
        telling = Telling()
        made = Monitor(
            world.cluster, settings, telling, clock=world.now, tick_s=world.reading(), **more
        )
        made.start()
        running.append(made)
        assert made.ready.wait(world.patience_s)
        return made, telling

    yield make
    for each in running:
        each.stop()
