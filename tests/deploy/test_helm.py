"""The chart: valid on every Kubernetes that it is for, and asking for no more than it needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "taciturn"
PRESETS = sorted((CHART / "presets").glob("*.yaml"))
VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
REQUIRED = {
    "database.existingSecret": "database",
    "ledger.existingSecret": "ledger",
    "storage.url": "s3://bucket/taciturn",
}
EVERYTHING = {
    "ingress.enabled": "true",
    "ingress.host": "taciturn.example",
    "ingress.tlsSecret": "tls",
    "oidc.issuer": "https://id.example",
    "oidc.clientId": "taciturn",
    "oidc.existingSecret": "oidc",
    "oidc.roles.doctors": "practitioner",
    "imagePullSecrets[0].name": "registry",
    "networkPolicy.workerEgress[0]": "10.1.0.0/16",
    "networkPolicy.gatewayEgress[0]": "10.2.0.0/16",
    "signing.existingSecret": "signing",
    "worker.dataSecret": "data",
}
CUSTOM = {"kueue.example": "true", "metrics.serviceMonitor": "true"}


def _helm() -> str:
    beside = Path(sys.executable).parent / "helm"
    found = str(beside) if beside.exists() else shutil.which("helm")
    if found is None:
        pytest.skip("helm is not installed")
    return found


def _run(command: str, settings: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    arguments = [_helm(), command, *(["gateway"] if command == "template" else []), str(CHART)]
    return subprocess.run(
        [*arguments, "--namespace", "privacy", *given, *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@lru_cache(maxsize=16)
def _rendered(preset: Path | None = None, custom: bool = False) -> tuple[dict[str, Any], ...]:
    more = ["--values", str(preset)] if preset else []
    settings = REQUIRED | EVERYTHING | (CUSTOM if custom else {})
    found = _run("template", settings, *more)
    assert found.returncode == 0, found.stderr
    return tuple(each for each in yaml.safe_load_all(found.stdout) if each)


def _of(kind: str, objects: tuple[dict[str, Any], ...], name: str = "") -> dict[str, Any]:
    (found,) = [
        each for each in objects if each["kind"] == kind and name in each["metadata"]["name"]
    ]
    return found


def _pods(objects: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    return [
        each["spec"]["template"]["spec"] for each in objects if "template" in each.get("spec", {})
    ]


@pytest.mark.parametrize("settings", [REQUIRED, REQUIRED | EVERYTHING | CUSTOM])
def test_lint(settings: dict[str, str]) -> None:
    found = _run("lint", settings, "--strict")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("preset", [None, *PRESETS], ids=lambda path: path.stem if path else "none")
def test_objects_are_valid(version: str, preset: Path | None) -> None:
    objects = _rendered(preset)
    assert len(objects) >= 12
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


def test_an_invalid_object_is_found() -> None:
    deployment = json.loads(json.dumps(_of("Deployment", _rendered())))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.36", strict=True)


@pytest.mark.parametrize("name", REQUIRED)
def test_what_must_be_given_is_asked_for(name: str) -> None:
    found = _run("template", {key: value for key, value in REQUIRED.items() if key != name})
    assert found.returncode != 0
    assert name in found.stderr


@pytest.mark.parametrize(
    "setting",
    [
        {"replicas": "3"},
        {"pools[0].gpus": "-1"},
        {"worker.sharedMemory": "much"},
        {"oidc.roles.doctors": "god"},
        {"settings.lower": "1"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_unknown_and_impossible_values_are_refused(setting: dict[str, str]) -> None:
    found = _run("template", REQUIRED | setting)
    assert found.returncode != 0
    assert "schema" in found.stderr


def test_pods_are_restricted() -> None:
    """The `restricted` Pod Security Standard, and a root file system that cannot be written."""
    pods = _pods(_rendered())
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


def test_rights_end_at_the_namespace() -> None:
    objects = _rendered()
    role = _of("Role", objects)
    verbs = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert "*" not in str(role["rules"])
    assert not verbs["", "secrets"] & {"get", "list", "watch"}
    cluster = _of("ClusterRole", objects)
    assert cluster["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
    ]
    for binding in (_of("RoleBinding", objects), _of("ClusterRoleBinding", objects)):
        assert [each["namespace"] for each in binding["subjects"]] == ["privacy"]


def test_accounts_get_no_token_unasked() -> None:
    accounts = [each for each in _rendered() if each["kind"] == "ServiceAccount"]
    assert len(accounts) == 2
    assert all(each["automountServiceAccountToken"] is False for each in accounts)


def test_workers_reach_what_was_declared() -> None:
    policy = _of("NetworkPolicy", _rendered(), "worker")
    blocks = [
        peer["ipBlock"]["cidr"]
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks == ["10.1.0.0/16"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_secrets_are_named_not_held() -> None:
    assert not [each for each in _rendered() if each["kind"] == "Secret"]
    environment = _of("Deployment", _rendered())["spec"]["template"]["spec"]["containers"][0]["env"]
    assert all("value" not in each for each in environment)


def test_migration_runs_before_an_upgrade() -> None:
    hook = _of("Job", _rendered())["metadata"]["annotations"]["helm.sh/hook"]
    assert set(hook.split(",")) == {"post-install", "pre-upgrade"}


def test_examples_for_other_operators() -> None:
    kinds = {each["kind"] for each in _rendered(custom=True)}
    assert {"ResourceFlavor", "ClusterQueue", "LocalQueue", "ServiceMonitor"} <= kinds
