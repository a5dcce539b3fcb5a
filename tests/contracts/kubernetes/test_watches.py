"""Watches: every change once, bookmarks, 410 Gone; and what a follower makes of them."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest
from kubernetes import client, watch

from fake_kubernetes.cluster import FakeCluster
from support.kubernetes_namespace import ClusterWorld
from taciturn.server.launchers.kubernetes.client import GoneError, Kind
from taciturn.server.launchers.kubernetes.informer import Caught, Change, Informer, ObjectChange

TLS = True  # what ends a watch, ends it in another way there


def put(world: ClusterWorld, name: str, mark: str, value: str = "1") -> None:
    metadata = client.V1ObjectMeta(name=name, labels={"mark": mark})
    made = client.V1ConfigMap(metadata=metadata, data={"value": value})
    try:
        world.core.create_namespaced_config_map(world.namespace, made)
    except client.ApiException:
        world.core.replace_namespaced_config_map(name, world.namespace, made)


def drop(world: ClusterWorld, name: str) -> None:
    world.core.delete_namespaced_config_map(name, world.namespace)


@pytest.fixture
def mark() -> str:
    return f"w-{secrets.token_hex(4)}"


def test_the_official_watch_sees_every_change(world: ClusterWorld, mark: str) -> None:
    listed = world.core.list_namespaced_config_map(world.namespace, label_selector=f"mark={mark}")
    put(world, f"{mark}-a", mark)
    put(world, f"{mark}-a", mark, "2")
    put(world, f"{mark}-b", "other")
    drop(world, f"{mark}-a")
    seen = [
        (each["type"], each["object"].data["value"])
        for each in watch.Watch().stream(
            world.core.list_namespaced_config_map,
            world.namespace,
            label_selector=f"mark={mark}",
            resource_version=listed.metadata.resource_version,
            timeout_seconds=world.watch_s,
        )
    ]
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")]


def test_what_comes_into_a_selection_and_leaves_it(world: ClusterWorld, mark: str) -> None:
    put(world, f"{mark}-a", "before")
    version = world.cluster.list(Kind.CONFIG_MAPS)[1]
    put(world, f"{mark}-a", mark)
    put(world, f"{mark}-a", "after")
    found = world.cluster.watch(Kind.CONFIG_MAPS, version, labels=f"mark={mark}", timeout_s=20)
    news = (what for what, _ in found if what != "BOOKMARK")
    assert list(islice(news, 2)) == ["ADDED", "DELETED"]


def test_bookmarks_move_on(world: ClusterWorld, fake: FakeCluster, mark: str) -> None:
    version = world.cluster.list(Kind.CONFIG_MAPS)[1]
    put(world, f"{mark}-a", "other")
    told = list(world.cluster.watch(Kind.CONFIG_MAPS, version, labels=f"mark={mark}", timeout_s=1))
    assert {what for what, _ in told} == {"BOOKMARK"}
    assert int(told[-1][1]["metadata"]["resourceVersion"]) > int(version)


def test_a_forgotten_version_is_gone(world: ClusterWorld, fake: FakeCluster) -> None:
    version = world.cluster.list(Kind.CONFIG_MAPS)[1]
    fake.store.compact()
    with pytest.raises(GoneError):
        list(world.cluster.watch(Kind.CONFIG_MAPS, version, timeout_s=1))


class Following:
    """A follower, and what it told."""

    def __init__(self, world: ClusterWorld, mark: str) -> None:
        self.news: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self.follower = Informer(world.cluster, Kind.CONFIG_MAPS, self.news, f"mark={mark}")
        self.follower.start()
        self.told: list[str] = []
        self.next("caught")

    def next(self, wanted: str) -> None:
        """Wait until something is told."""
        while wanted not in self.told:
            news = self.news.get(timeout=120)
            if isinstance(news, ObjectChange):
                what = "gone" if news.is_gone else news.item["data"]["value"]
                self.told.append(f"{news.item['metadata']['name'][-1]}:{what}")
            elif isinstance(news, Caught):
                self.told.append("caught")


@pytest.fixture
def following(world: ClusterWorld, mark: str) -> Iterator[Following]:
    put(world, f"{mark}-a", mark)
    put(world, f"{mark}-b", mark)
    made = Following(world, mark)
    yield made
    made.follower.stop()


def test_a_follower_tells_what_is_there_and_what_changes(
    world: ClusterWorld, mark: str, following: Following
) -> None:
    put(world, f"{mark}-a", mark, "2")
    following.next("a:2")
    drop(world, f"{mark}-b")
    following.next("b:gone")
    assert following.told == ["a:1", "b:1", "caught", "a:2", "b:gone"]


def test_after_410_what_went_meanwhile_is_told(
    world: ClusterWorld, fake: FakeCluster, mark: str, following: Following
) -> None:
    """Nobody saw the deletion: it lies in the history that was forgotten."""
    with fake.store.lock:
        fake.server.failures.extend([503] * 2)
        fake.server.cut()
        found = fake.store.find("configmaps", world.namespace, f"{mark}-b")
        assert found is not None
        fake.store.remove("configmaps", found)
        fake.store.compact()
    following.next("b:gone")
    assert following.told.count("a:1") == 1
    put(world, f"{mark}-a", mark, "2")
    following.next("a:2")


def test_a_server_that_was_put_back_to_a_backup_is_listed_again(
    world: ClusterWorld, fake: FakeCluster, mark: str, following: Following
) -> None:
    """Its versions are below the one that was reached: no watch from there ever begins."""
    with fake.store.lock:
        found = fake.store.find("configmaps", world.namespace, f"{mark}-b")
        assert found is not None
        fake.store.remove("configmaps", found)
        fake.store.version = 100
        fake.store.compact()
        fake.server.cut()
    following.next("b:gone")
    put(world, f"{mark}-a", mark, "2")
    following.next("a:2")


def test_an_api_server_that_restarts_is_followed_on(
    world: ClusterWorld, fake: FakeCluster, mark: str, following: Following
) -> None:
    for number in range(2, 5):
        fake.server.cut()
        put(world, f"{mark}-a", mark, str(number))
        following.next(f"a:{number}")
    assert following.told[3:] == ["a:2", "a:3", "a:4"]


def test_a_follower_ends_at_once(world: ClusterWorld, mark: str) -> None:
    follower = Informer(world.cluster, Kind.CONFIG_MAPS, queue.SimpleQueue(), f"mark={mark}")
    thread = follower.start()
    time.sleep(0.2)
    began = time.monotonic()
    follower.stop()
    thread.join(60)
    assert isinstance(thread, threading.Thread)
    assert not thread.is_alive()
    assert time.monotonic() - began < 3
