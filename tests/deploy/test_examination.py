"""`doctor --kubernetes`: what is wrong is found, and every finding says what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chart import PRESETS, of_kind, rendered
from taciturn.server.launchers.kubernetes.examination import Finding, examine
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GPU = Pool(
    name="l4",
    gpus=1,
    node_selector={"cloud.google.com/gke-accelerator": "nvidia-l4"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},),
)


def node(labels: dict[str, str], gpus: int) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": labels},
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)} if gpus else {}},
    }


@dataclass
class Answers:
    """A cluster where all is well, until a test says otherwise."""

    refused: set[tuple[str, str]] = field(default_factory=set)
    there: Sequence[dict[str, Any]] = ()
    named: set[str] = field(default_factory=lambda: {"worker", "claim"})
    date: datetime = NOW

    def may(self, verb: str, group: str, resource: str, *, everywhere: bool = False) -> bool:
        secret = resource == "secrets" and verb in ("get", "list", "watch", "patch", "update")
        return (verb, resource) not in self.refused and (
            not secret or ("all", "secrets") in self.refused
        )

    def nodes(self) -> Sequence[dict[str, Any]]:
        return self.there

    def has(self, kind: str, name: str) -> bool:
        return name in self.named

    def policies(self) -> Sequence[dict[str, Any]]:
        return ()

    def time(self) -> datetime:
        return self.date


def settings(**changes: Any) -> KubernetesSettings:
    told = {
        "service_account": "worker",
        "workspace_claim": "claim",
        "egress": ({"cidr": "10.0.0.0/8"},),
        "pools": (GPU,),
    }
    return KubernetesSettings.model_validate({**told, **changes})


def problems(answers: Answers, told: KubernetesSettings | None = None) -> dict[str, Finding]:
    found = examine(answers, told or settings(), storage=lambda: "s3://b", now=lambda: NOW)
    return {each.what: each for each in found if each.remedy}


def test_nothing_is_wrong() -> None:
    assert problems(Answers()) == {}


@pytest.mark.parametrize(
    ("answers", "what", "remedy"),
    [
        (Answers(refused={("create", "jobs")}), "permissions in default", "Role"),
        (Answers(refused={("watch", "nodes")}), "nodes", "ClusterRole"),
        (Answers(refused={("all", "secrets")}), "secrets", "take these verbs away"),
        (Answers(there=[node(dict(GPU.node_selector), 0)]), "pool l4", "device plugin"),
        (Answers(named={"claim"}), "workers' service account", "create it"),
        (Answers(named={"worker"}), "workspaces", "PersistentVolumeClaim"),
        (Answers(date=NOW - timedelta(minutes=2)), "clock", "NTP"),
    ],
)
def test_a_problem_is_found_with_its_remedy(answers: Answers, what: str, remedy: str) -> None:
    found = problems(answers)
    assert list(found) == [what]
    assert remedy in found[what].remedy


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        ({"pools": (GPU.model_copy(update={"node_selector": {"team": "x"}}),)}, "pool l4", "tag"),
        ({"pools": (GPU.model_copy(update={"tolerations": ()}),)}, "pool l4", "toleration"),
        ({"pools": (GPU.model_copy(update={"scales": False}),)}, "pool l4", "label one"),
        ({"workspace_claim": ""}, "workspaces", "worker.checkpoints"),
        ({"egress": ()}, "egress of workers", "workerEgress"),
        ({"network_policy": False}, "egress of workers", "network_policy"),
    ],
)
def test_settings_that_will_not_do(changes: dict[str, Any], what: str, remedy: str) -> None:
    found = problems(Answers(), settings(**changes))
    assert list(found) == [what]
    assert remedy in found[what].remedy


def test_checkpoints_in_a_store_outlive_a_node() -> None:
    kept = {"checkpoint_url": "s3://bucket/checkpoints", "checkpoint_secret": "vault"}
    assert problems(Answers(), settings(workspace_claim="", **kept)) == {}


def test_nodes_that_are_there_are_counted() -> None:
    answers = Answers(there=[node(dict(GPU.node_selector), 4), node({}, 8)])
    (found,) = [each for each in examine(answers, settings()) if each.what == "pool l4"]
    assert found.found == "1 nodes now, up to 4 GPUs each"


def test_a_store_that_cannot_be_written() -> None:
    def broken() -> str:
        raise PermissionError("key AKIA-SECRET")

    found = examine(Answers(), settings(), storage=broken, now=lambda: NOW)
    (store,) = [each for each in found if each.what == "object store"]
    assert store.remedy
    assert "AKIA" not in store.found


def test_a_cluster_that_does_not_answer_is_a_finding() -> None:
    class Silent(Answers):
        def nodes(self) -> Sequence[dict[str, Any]]:
            raise OSError("connection refused")

    found = examine(Silent(), settings(), now=lambda: NOW)
    assert any("kubectl get nodes" in each.remedy for each in found)


@pytest.mark.parametrize("preset", [None, *PRESETS], ids=lambda path: path.stem if path else "none")
def test_the_chart_writes_what_the_launcher_reads(preset: Any) -> None:
    written = of_kind("ConfigMap", rendered(preset), "launcher")["data"]["kubernetes.json"]
    told = KubernetesSettings.model_validate_json(written)
    assert told.namespace == "privacy"
    assert told.egress[0].cidr == "10.1.0.0/16"
    assert {pool["name"] for pool in json.loads(written)["pools"]} == {p.name for p in told.pools}


def test_the_chart_grants_what_is_asked_for() -> None:
    granted = {
        (verb, group, resource)
        for rule in of_kind("Role", rendered())["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }

    class Granted(Answers):
        def may(self, verb: str, group: str, resource: str, *, everywhere: bool = False) -> bool:
            return everywhere or (verb, group, resource) in granted

    found = problems(Granted())
    assert found == {}
