"""The chart: valid on every Kubernetes that it is for, and asking for no more than it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from support.helm_chart import (
    CHART,
    CUSTOM,
    EVERYTHING,
    PRESETS,
    REQUIRED,
    ROOT,
    VERSIONS,
    of_kind,
    pods,
    rendered,
    run,
)
from taciturn.server.launchers.kubernetes import preflight
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool, amount
from taciturn.server.serve import GRACE_S


@pytest.mark.parametrize("settings", [REQUIRED, REQUIRED | EVERYTHING | CUSTOM])
def test_lint(settings: dict[str, str]) -> None:
    found = run("lint", settings, "--strict")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("preset", [None, *PRESETS], ids=lambda path: path.stem if path else "none")
def test_objects_are_valid(version: str, preset: Path | None) -> None:
    objects = rendered(preset)
    assert len(objects) >= 12
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


def test_an_invalid_object_is_found() -> None:
    deployment = json.loads(json.dumps(of_kind("Deployment", rendered())))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.36", strict=True)


@pytest.mark.parametrize("name", REQUIRED)
def test_what_must_be_given_is_asked_for(name: str) -> None:
    found = run("template", {key: value for key, value in REQUIRED.items() if key != name})
    assert found.returncode != 0
    assert name in found.stderr


@pytest.mark.parametrize(
    "setting",
    [
        {"replicas": "0"},
        {"replicaCount": "3"},
        {"pools[0].gpus": "-1"},
        {"worker.sharedMemory": "much"},
        {"oidc.roles.doctors": "god"},
        {"settings.lower": "1"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_unknown_and_impossible_values_are_refused(setting: dict[str, str]) -> None:
    found = run("template", REQUIRED | setting)
    assert found.returncode != 0
    assert "schema" in found.stderr


def test_pods_are_restricted() -> None:
    """The `restricted` Pod Security Standard, and a root file system that cannot be written."""
    found = pods(rendered())
    assert len(found) == 1
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["initContainers"] + pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


def gateway_pod(**settings: str) -> dict[str, Any]:
    found = run("template", REQUIRED | settings)
    assert found.returncode == 0, found.stderr
    objects = tuple(each for each in yaml.safe_load_all(found.stdout) if each)
    return dict(of_kind("Deployment", objects)["spec"]["template"]["spec"])


def test_a_gateway_of_several_processes_has_what_they_need() -> None:
    pod = gateway_pod(processes="4")
    (container,) = pod["containers"]
    # What they count is below /tmp, and the root file system cannot be written.
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert "emptyDir" in volumes[mounts["/tmp"]]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    # The supervisor is the container's first process and gets SIGTERM: no shell in between.
    assert "command" not in container
    assert container["args"] == ["serve"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/v1/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/ready"


def test_a_stop_has_time_for_requests_and_for_endpoints_to_be_forgotten() -> None:
    pod = gateway_pod()
    (container,) = pod["containers"]
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before_s >= 5
    assert pod["terminationGracePeriodSeconds"] >= before_s + GRACE_S + 30


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_memory_grows_with_the_processes(count: int) -> None:
    (container,) = gateway_pod(processes=str(count))["containers"]
    limit = amount(container["resources"]["limits"]["memory"])
    assert limit >= (256 + count * 384) * 2**20
    requested = amount(container["resources"]["requests"]["memory"])
    assert (128 + count * 192) * 2**20 <= requested <= limit


def test_workers_are_told_where_the_gateway_is_within_the_cluster() -> None:
    """Whatever people call it."""
    given = {"publicUrl": "https://taciturn.example", "worker.dataSecrets.patients": "theirs"}
    found = run("template", REQUIRED | given)
    maps = [each for each in yaml.safe_load_all(found.stdout) if each["kind"] == "ConfigMap"]
    (told,) = [each["data"] for each in maps if "TACITURN_PUBLIC_URL" in each["data"]]
    (launcher,) = [each["data"] for each in maps if "kubernetes.json" in each["data"]]
    assert told["TACITURN_PUBLIC_URL"] == "https://taciturn.example"
    assert int(told["TACITURN_MAX_WORKERS"]) > 1
    settings = KubernetesSettings.model_validate_json(launcher["kubernetes.json"])
    assert settings.gateway_url == "http://gateway.privacy.svc:80"
    assert settings.data_secrets == {"patients": "theirs"}


def test_memory_that_was_given_counts() -> None:
    (container,) = gateway_pod(**{"processes": "8", "resources.limits.memory": "3Gi"})["containers"]
    assert container["resources"]["limits"]["memory"] == "3Gi"


@pytest.mark.parametrize("replicas", [None, "1", "3"])
def test_one_replica_at_a_time_goes_and_a_drain_is_not_blocked(replicas: str | None) -> None:
    """Of one replica, a budget that kept it up would hold its node for ever."""
    chosen = REQUIRED if replicas is None else REQUIRED | {"replicas": replicas}
    rendering = run("template", chosen)
    assert rendering.returncode == 0, rendering.stderr
    objects = tuple(each for each in yaml.safe_load_all(rendering.stdout) if each)
    budget = of_kind("PodDisruptionBudget", objects)["spec"]
    deployment = of_kind("Deployment", objects)["spec"]
    assert budget["selector"] == deployment["selector"]
    assert deployment["replicas"] == int(replicas or 2)
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget
    # An upgrade starts a new one before it ends an old one.
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"] == deployment["selector"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"


def test_rights_end_at_the_namespace() -> None:
    objects = rendered()
    role = of_kind("Role", objects)
    verbs = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    needed = {(group, resource): set(each) for group, resource, each in preflight._NEEDED}
    looked_at = {("", kind): {"get"} for kind in ("serviceaccounts", "persistentvolumeclaims")}
    # All that jobs and the doctor need, and nothing else: whoever may patch a Secret can read it.
    owners = {("batch", "jobs"), ("networking.k8s.io", "networkpolicies")}
    waits = {(group, f"{kind}/finalizers"): {"update"} for group, kind in owners}
    assert verbs == needed | looked_at | waits
    assert verbs["", "secrets"] == {"create", "delete"}
    cluster = of_kind("ClusterRole", objects)
    assert cluster["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
    ]
    for binding in (of_kind("RoleBinding", objects), of_kind("ClusterRoleBinding", objects)):
        assert [each["namespace"] for each in binding["subjects"]] == ["privacy"]


def test_accounts_get_no_token_unasked() -> None:
    accounts = [each for each in rendered() if each["kind"] == "ServiceAccount"]
    assert len(accounts) == 2
    assert all(each["automountServiceAccountToken"] is False for each in accounts)


def test_workers_reach_what_was_declared() -> None:
    policy = of_kind("NetworkPolicy", rendered(), "worker")
    blocks = [
        peer["ipBlock"]["cidr"]
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks == ["169.254.20.10/32", "10.1.0.0/16"]  # names, and what was declared
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_secrets_are_named_not_held() -> None:
    assert not [each for each in rendered() if each["kind"] == "Secret"]
    environment = of_kind("Deployment", rendered())["spec"]["template"]["spec"]["containers"][0][
        "env"
    ]
    assert all("value" not in each for each in environment)


def test_the_gateway_is_migrated_before_it_starts() -> None:
    """In its pod: with a hook, `helm install --wait` waited for a gateway that waited for the hook,
    and a failed one left its pods behind."""
    objects = rendered()
    assert not [each for each in objects if "helm.sh/hook" in str(each["metadata"])]
    assert "Job" not in {each["kind"] for each in objects}
    pod = of_kind("Deployment", objects)["spec"]["template"]["spec"]
    (migration,), (gateway,) = pod["initContainers"], pod["containers"]
    assert migration["args"] == ["serve", "--migrate"]
    for same in ("image", "env", "envFrom", "securityContext"):
        assert migration[same] == gateway[same]
    mounts = {each["mountPath"] for each in migration["volumeMounts"]}
    assert mounts == {"/tmp", "/var/lib/taciturn"}


def written(**settings: Any) -> dict[str, Any]:
    """What the chart tells the launcher."""
    found = run("template", REQUIRED | settings)
    assert found.returncode == 0, found.stderr
    maps = [each for each in yaml.safe_load_all(found.stdout) if each["kind"] == "ConfigMap"]
    (text,) = [
        each["data"]["kubernetes.json"] for each in maps if "kubernetes.json" in each["data"]
    ]
    return dict(json.loads(text))


def test_the_chart_can_set_all_that_the_launcher_knows() -> None:
    """Except for what follows from the images that the chart is for."""
    told = written()
    fixed = {"command", "run_as", "gateway_port", "rendezvous_port"}
    assert set(KubernetesSettings.model_fields) - set(told) == fixed
    assert set(Pool.model_fields) == set(told["pools"][0])


def test_what_is_given_reaches_the_launcher() -> None:
    given = {
        "worker.startSeconds": "900", "worker.retries": "0", "worker.podLabels.team": "x",
        "worker.image.pullPolicy": "Always", "networkPolicy.workerEgress[0]": "10.0.0.0/8",
        "networkPolicy.workerEgress[1].cidr": "10.1.0.0/16",
        "networkPolicy.workerEgress[1].ports[0]": "5432",
        "pools[0].name": "a", "pools[0].gpus": "0", "pools[0].cpu": "2", "pools[0].memory": "1Gi",
        "pools[0].ephemeralStorage": "1Gi", "pools[0].currency": "EUR",
        "pools[0].releaseSeconds": "60", "pools[0].nodeSelector.gpu": "true",
    }  # fmt: skip
    told = KubernetesSettings.model_validate(written(**given))
    assert (told.start_s, told.retries, told.labels) == (900, 0, {"team": "x"})
    assert told.image_pull_policy == "Always"
    assert [(each.cidr, each.ports) for each in told.egress] == [
        ("10.0.0.0/8", ()), ("10.1.0.0/16", (5432,))
    ]  # fmt: skip
    (pool,) = told.pools
    assert (pool.currency, pool.release_s, pool.node_selector) == ("EUR", 60.0, {"gpu": "true"})
    found = run("template", REQUIRED | given)
    objects = tuple(each for each in yaml.safe_load_all(found.stdout) if each)
    rules = of_kind("NetworkPolicy", objects, "worker")["spec"]["egress"]
    assert rules[-1] == {
        "to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 5432, "protocol": "TCP"}]
    }  # fmt: skip
    data = next(each["data"] for each in objects if "TACITURN_PROVISION_S" in each.get("data", {}))
    assert data["TACITURN_PROVISION_S"] == "900"


@pytest.mark.parametrize(("tag", "image"), [("1", ":1"), ("0", ":0"), ("20240101", ":20240101")])
def test_tags_and_settings_may_look_like_numbers(tag: str, image: str, tmp_path: Path) -> None:
    (container,) = gateway_pod(**{"image.tag": tag, "settings.TICK_S": "5"})["containers"]
    assert container["image"] == f"taciturn/gateway{image}"
    values = tmp_path / "values.yaml"
    values.write_text(f"worker: {{image: {{tag: {tag}}}}}", encoding="utf-8")
    found = run("template", REQUIRED, "--values", str(values))
    assert found.returncode == 0, found.stderr
    assert f'"taciturn/worker{image}"' in found.stdout


def test_examples_for_other_operators() -> None:
    kinds = {each["kind"] for each in rendered(custom=True)}
    assert {"ResourceFlavor", "ClusterQueue", "LocalQueue", "ServiceMonitor"} <= kinds


def test_prometheus_shows_the_token_that_the_gateway_knows() -> None:
    objects = rendered(custom=True)
    (endpoint,) = of_kind("ServiceMonitor", objects)["spec"]["endpoints"]
    shown = endpoint["authorization"]["credentials"]
    gateway = of_kind("Deployment", objects)["spec"]["template"]["spec"]["containers"][0]
    (known,) = [each for each in gateway["env"] if each["name"] == "TACITURN_METRICS_TOKEN"]
    assert known["valueFrom"]["secretKeyRef"] == shown == {"name": "scrape", "key": "token"}
    found = run("template", REQUIRED | {"metrics.serviceMonitor": "true"})
    assert found.returncode != 0
    assert "metrics.existingSecret" in found.stderr
    plain = of_kind("Deployment", rendered())["spec"]["template"]["spec"]["containers"][0]
    assert "TACITURN_METRICS_TOKEN" not in {each["name"] for each in plain["env"]}


def test_clients_addresses_come_from_the_ingress() -> None:
    maps = [each["data"] for each in rendered() if each["kind"] == "ConfigMap"]
    said = [data["TACITURN_TRUSTED_PROXIES"] for data in maps if "TACITURN_HOST" in data]
    assert said == ["10.3.0.0/16"]


def test_chart_doctor_and_documentation_name_one_oldest_version() -> None:
    oldest = ".".join(map(str, preflight.OLDEST))
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["kubeVersion"] == f">={oldest}.0-0"
    assert VERSIONS[0] == oldest
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert f"Kubernetes {oldest} or later" in text
