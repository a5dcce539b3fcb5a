"""Installation on Kubernetes, copied from its pages and run without a cluster.

The blocks are run by bash as they are written. `helm install` renders the chart by the real helm;
what `kubectl exec` runs in the gateway's pod runs here, against the fake cluster; `kubectl logs`
gives what `taciturn serve` prints at its first start. Every other call of docker and kubectl is
recorded, and checked against the chart and the files that are there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from fake_kubernetes.cluster import FakeCluster
from support.code_blocks import copied
from support.helm_chart import ROOT, helm, of_kind
from support.kubernetes_namespace import SPEED, ClusterWorld
from taciturn.cli.serve import first_token_text

pytestmark = pytest.mark.timeout(300)

NAMESPACE = "taciturn"
PAGES = ("docs/start/kubernetes.md", "docs/kubernetes.md")
# A stand-in of docker, helm and kubectl, which are told apart by the name they are called by.
_PROGRAM = """#!{python}
import json, os, sys
from pathlib import Path
folder, name, words = Path({folder!r}), Path(sys.argv[0]).name, sys.argv[1:]
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
if name == "helm":
    words[0] = {{"install": "template"}}[words[0]]
    output = os.open(folder / "rendered.yaml", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.execv({helm!r}, ["helm", *words])
if name == "kubectl" and "exec" in words:
    inside = words[words.index("--") + 1:]
    os.execv({python!r}, [{python!r}, {pod!r}, str(folder), *inside])
if name == "kubectl" and "logs" in words:
    print((folder / "gateway.log").read_text())
"""
# What runs in the gateway's pod: with the settings that the chart has rendered.
_POD = """
import os, sys
from pathlib import Path
import yaml
folder, words = Path(sys.argv[1]), sys.argv[2:]
objects = [item for item in yaml.safe_load_all((folder / "rendered.yaml").read_text()) if item]
maps = [item["data"] for item in objects if item["kind"] == "ConfigMap"]
settings = {name: value for data in maps for name, value in data.items()}
config = folder / "kubernetes.json"
config.write_text(settings.pop("kubernetes.json"))
names = {name: value for name, value in settings.items() if name.startswith("TACITURN_")}
# The bucket is not there; the doctor's look at a store has tests of its own.
names.pop("TACITURN_STORAGE_URL", None)
names["TACITURN_KUBERNETES_CONFIG"] = str(config)
os.execvpe(words[0], words, {**os.environ, **names})
"""


@dataclass
class Operator:
    """Somebody who copies a page's blocks into a shell, in a clone of the repository."""

    folder: Path
    environment: dict[str, str]

    def run(self, code: str) -> str:
        """Run a block; returns what it prints."""
        done = subprocess.run(
            ["bash", "-e", "-c", code],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def calls(self, *beginning: str) -> list[list[str]]:
        """Return the calls of a program that have these words in their order, without `-n NAME`."""
        lines = (self.folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()
        calls = [_without_namespace(json.loads(line)) for line in lines]
        return [call for call in calls if call[: len(beginning)] == list(beginning)]

    def rendered(self) -> tuple[dict[str, Any], ...]:
        """Return the objects that `helm install` would have made."""
        text = (self.folder / "rendered.yaml").read_text(encoding="utf-8")
        return tuple(item for item in yaml.safe_load_all(text) if item)


def _without_namespace(call: list[str]) -> list[str]:
    if "-n" not in call:
        return call
    at = call.index("-n")
    assert call[at + 1] == NAMESPACE
    return call[:at] + call[at + 2 :]


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """Somebody with a cluster that grants what the chart's roles grant."""
    programs = tmp_path / "bin"
    programs.mkdir()
    pod = tmp_path / "pod.py"
    pod.write_text(_POD, encoding="utf-8")
    text = _PROGRAM.format(python=sys.executable, folder=str(tmp_path), helm=helm(), pod=str(pod))
    for name in ("docker", "helm", "kubectl"):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    with FakeCluster(speed=SPEED) as fake:
        world = ClusterWorld(fake.kubeconfig, NAMESPACE, fake)
        metadata = client.V1ObjectMeta(name=NAMESPACE)
        world.core.create_namespace(client.V1Namespace(metadata=metadata))
        account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="taciturn-worker"))
        world.core.create_namespaced_service_account(NAMESPACE, account)
        fake.api.permits = lambda wish: granted(tmp_path, wish)
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {
            "PATH": path,
            "HOME": str(tmp_path),
            "KUBECONFIG": str(fake.kubeconfig),
            "COLUMNS": "200",
        }
        yield Operator(tmp_path, environment)


def granted(folder: Path, wish: Mapping[str, str]) -> bool:
    """Return whether the chart's roles let the gateway do something, in its namespace or in all."""
    objects = yaml.safe_load_all((folder / "rendered.yaml").read_text(encoding="utf-8"))
    kind = "Role" if wish.get("namespace") else "ClusterRole"
    rules = [rule for item in objects if item and item["kind"] == kind for rule in item["rules"]]
    return any(
        wish.get("group", "") in rule["apiGroups"]
        and wish["resource"] in rule["resources"]
        and wish["verb"] in rule["verbs"]
        for rule in rules
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_chart_is_installed_as_the_page_says(operator: Operator, page: str) -> None:
    log = f"taciturn gateway at URL\n{first_token_text('tac_x', 'URL')}\n"
    (operator.folder / "gateway.log").write_text(log, encoding="utf-8")
    output = [operator.run(block.code) for block in copied(ROOT / page)]
    assert "jobs can run here" in "\n".join(output), "the doctor found no problem"
    _check_secrets(operator)
    _check_images(operator)
    objects = operator.rendered()
    assert {item["metadata"].get("namespace", NAMESPACE) for item in objects} == {NAMESPACE}
    for verb in ("exec", "logs"):
        for call in operator.calls("kubectl", verb):
            kind, _, name = call[2].partition("/")
            assert of_kind(kind.capitalize(), objects)["metadata"]["name"] == name
    if page == "docs/start/kubernetes.md":
        assert "tac_" in output[-1], "the token is in what the page's grep shows"


def _check_secrets(operator: Operator) -> None:
    """Every key of a Secret that the pods read is in one that the page makes."""
    made: dict[str, set[str]] = {}
    for call in operator.calls("kubectl", "create", "secret", "generic"):
        words = dict(word.removeprefix("--from-literal=").split("=", 1) for word in call[5:])
        made[call[4]] = set(words)
        for value in words.values():
            assert "://" in value or re.fullmatch("[0-9a-f]{64}", value), shlex.join(call)
    pod = of_kind("Deployment", operator.rendered())["spec"]["template"]["spec"]
    variables = [
        variable["valueFrom"]["secretKeyRef"]
        for container in (*pod["initContainers"], *pod["containers"])
        for variable in container["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    ]
    assert variables
    for variable in variables:
        assert variable["key"] in made[variable["name"]], variable
    assert operator.calls("kubectl", "create", "namespace") == [
        ["kubectl", "create", "namespace", NAMESPACE]
    ]


def _check_images(operator: Operator) -> None:
    """The images that pods run are those that the page builds and pushes."""
    objects = operator.rendered()
    pod = of_kind("Deployment", objects)["spec"]["template"]["spec"]
    written = of_kind("ConfigMap", objects, "launcher")["data"]["kubernetes.json"]
    images = {container["image"] for container in pod["containers"]} | {
        json.loads(written)["image"]
    }
    built = operator.calls("docker", "build")
    if built:
        assert {call[call.index("-t") + 1] for call in built} == images
        assert {call[2] for call in operator.calls("docker", "push")} == images
        assert all((ROOT / call[call.index("-f") + 1]).is_file() for call in built)
    else:
        assert all(image.startswith("REGISTRY/taciturn-") for image in images)
