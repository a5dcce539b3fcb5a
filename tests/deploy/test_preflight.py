"""`doctor --kubernetes`: what is wrong is found, and every finding says what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.helm_chart import PRESETS, REQUIRED, of_kind, rendered, run
from taciturn.cli.doctor_kubernetes import run_doctor_kubernetes
from taciturn.server.launchers.kubernetes import preflight
from taciturn.server.launchers.kubernetes.client import Cluster
from taciturn.server.launchers.kubernetes.preflight import ClusterFinding, examine
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GPU = Pool(
    name="l4",
    gpus=1,
    node_selector={"cloud.google.com/gke-accelerator": "nvidia-l4"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},),
)


def node(labels: dict[str, str], gpus: int, ready: str = "True", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": labels},
        "spec": spec,
        "status": {
            "allocatable": {"nvidia.com/gpu": str(gpus)} if gpus else {},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


@dataclass
class Answers:
    """A cluster where all is well, until a test says otherwise."""

    refused: set[tuple[str, str]] = field(default_factory=set)
    there: Sequence[dict[str, Any]] = ()
    named: set[str] = field(default_factory=lambda: {"worker", "claim"})
    date: datetime = NOW
    release: tuple[int, int] = (1, 31)

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

    def version(self) -> tuple[int, int]:
        return self.release


def settings(**changes: Any) -> KubernetesSettings:
    told = {
        "service_account": "worker",
        "workspace_claim": "claim",
        "egress": ({"cidr": "10.0.0.0/8"},),
        "pools": (GPU,),
    }
    return KubernetesSettings.model_validate({**told, **changes})


def problems(answers: Answers, told: KubernetesSettings | None = None) -> dict[str, ClusterFinding]:
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
        (Answers(release=(1, 30)), "Kubernetes", "1.31 or later"),
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
    assert found[what].is_problem is (remedy in ("toleration", "label one", "network_policy"))


def test_checkpoints_in_a_store_outlive_a_node() -> None:
    kept = {"checkpoint_url": "s3://bucket/checkpoints", "checkpoint_secret": "vault"}
    assert problems(Answers(), settings(workspace_claim="", **kept)) == {}


def test_nodes_that_are_there_are_counted() -> None:
    answers = Answers(there=[node(dict(GPU.node_selector), 4), node({}, 8)])
    (found,) = [each for each in examine(answers, settings()) if each.what == "pool l4"]
    assert found.text == "1 node now, up to 4 GPUs each"


@pytest.mark.parametrize(
    ("ready", "spec"), [("Unknown", {}), ("False", {}), ("True", {"unschedulable": True})]
)
def test_nodes_on_which_nothing_runs_are_not_counted(ready: str, spec: dict[str, Any]) -> None:
    labels = dict(GPU.node_selector)
    there = [node(labels, 4), node(labels, 8), node(labels, 16, ready, **spec)]
    (found,) = [e for e in examine(Answers(there=there), settings()) if e.what == "pool l4"]
    assert found.text == "2 nodes now, up to 8 GPUs each (1 more not ready)"
    fixed = settings(pools=(GPU.model_copy(update={"scales": False}),))
    (found,) = problems(Answers(there=there[2:]), fixed).values()
    assert (found.text, found.is_problem) == ("1 node, not ready", True)


def test_a_sound_fresh_install_has_no_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No store for checkpoints, no addresses of data yet: advice, and exit code 0."""
    written = of_kind("ConfigMap", plain(), "launcher")["data"]["kubernetes.json"]
    path = tmp_path / "kubernetes.json"
    path.write_text(written, encoding="utf-8")
    monkeypatch.setenv("TACITURN_KUBERNETES_CONFIG", str(path))
    account = KubernetesSettings.model_validate_json(written).service_account
    answers = Answers(there=[node({}, 0)], named={account}, date=datetime.now(UTC))
    monkeypatch.setattr(preflight, "ApiServerQueries", lambda cluster: answers)
    monkeypatch.setattr(Cluster, "connect", lambda *_: None)
    assert run_doctor_kubernetes() is True
    said = capsys.readouterr().out
    assert "advice" in said
    assert "jobs can run here" in said


def plain() -> tuple[dict[str, Any], ...]:
    found = run("template", REQUIRED)
    return tuple(each for each in yaml.safe_load_all(found.stdout) if each)


def test_a_store_that_cannot_be_written() -> None:
    def broken() -> str:
        raise PermissionError("key AKIA-SECRET")

    found = examine(Answers(), settings(), storage=broken, now=lambda: NOW)
    (store,) = [each for each in found if each.what == "object store"]
    assert store.remedy
    assert "AKIA" not in store.text


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
