"""The Helm chart, rendered for tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

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
    "ingress.trustedProxies": "10.3.0.0/16",
    "oidc.issuer": "https://id.example",
    "oidc.clientId": "taciturn",
    "oidc.existingSecret": "oidc",
    "oidc.roles.doctors": "practitioner",
    "imagePullSecrets[0].name": "registry",
    "networkPolicy.workerEgress[0]": "10.1.0.0/16",
    "sources.prefixes[0]": "s3://hospital/",
    "sources.networks[0]": "10.1.0.0/16",
    "networkPolicy.gatewayEgress[0]": "10.2.0.0/16",
    "signing.existingSecret": "signing",
    "worker.dataSecret": "data",
    "worker.checkpoints.url": "s3://bucket/checkpoints",
    "worker.checkpoints.existingSecret": "vault",
}
CUSTOM = {
    "kueue.example": "true",
    "metrics.serviceMonitor": "true",
    "metrics.existingSecret": "scrape",
}


def helm() -> str:
    beside = Path(sys.executable).parent / "helm"
    program = str(beside) if beside.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed")
    return program


def run(command: str, settings: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    arguments = [helm(), command, *(["gateway"] if command == "template" else []), str(CHART)]
    return subprocess.run(
        [*arguments, "--namespace", "privacy", *flags, *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@lru_cache(maxsize=16)
def rendered(preset: Path | None = None, custom: bool = False) -> tuple[dict[str, Any], ...]:
    more = ["--values", str(preset)] if preset else []
    settings = REQUIRED | EVERYTHING | (CUSTOM if custom else {})
    result = run("template", settings, *more)
    assert result.returncode == 0, result.stderr
    return tuple(item for item in yaml.safe_load_all(result.stdout) if item)


def of_kind(kind: str, objects: tuple[dict[str, Any], ...], name: str = "") -> dict[str, Any]:
    (result,) = [
        item for item in objects if item["kind"] == kind and name in item["metadata"]["name"]
    ]
    return result


def pods(objects: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    return [
        item["spec"]["template"]["spec"] for item in objects if "template" in item.get("spec", {})
    ]
