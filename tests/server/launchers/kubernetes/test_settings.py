"""The launcher's settings: as the chart writes them, and with mistakes that are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taciturn.errors import SpecError
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, amount

CHART: dict[str, Any] = {
    "namespace": "taciturn", "instance": "main", "gateway_url": "http://main.taciturn.svc",
    "image": "taciturn/worker:0.1.0", "service_account": "worker", "data_secret": "",
    "signing_secret": "", "workspace_claim": "", "grace_period_s": 120, "deadline_s": 86400,
    "ttl_s": 600, "shared_memory": "8Gi", "queue": "", "image_pull_secrets": [],
    "pools": [{
        "name": "l4", "gpus": 1, "gpu_memory": "24Gi", "cpu": "7", "memory": "28Gi",
        "ephemeral_storage": "60Gi", "price_per_hour": 0.7, "scales": True,
        "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }, {
        "name": "cpu", "gpus": 0, "gpu_memory": "", "cpu": "2", "memory": "8Gi",
        "ephemeral_storage": "20Gi", "price_per_hour": 0.0, "scales": True, "node_selector": {},
        "tolerations": [],
    }],
}  # fmt: skip


def read(path: Path, **change: Any) -> KubernetesSettings:
    file = path / "kubernetes.json"
    file.write_text(json.dumps({**CHART, **change}))
    return KubernetesSettings.read(file)


def test_what_the_chart_writes_is_read(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert [pool.gpu_memory_bytes for pool in settings.pools] == [24 * 2**30, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_name": "x"}, "image_name: Extra inputs"),
        ({"shared_memory": "8 GB"}, "shared_memory"),
        ({"pools": []}, "pools"),
        ({"namespace": "Not A Name"}, "namespace"),
        ({"checkpoint_url": "s3://bucket/checkpoints"}, "checkpoint_url alone"),
        ({"checkpoint_secret": "vault"}, "checkpoint_secret alone"),
        ({"peer_limit_s": 0}, "peer_limit_s"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read(tmp_path, **change)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        KubernetesSettings.read(tmp_path / "nothing")


def test_quantities() -> None:
    assert (amount("80Gi"), amount("500m"), amount("2")) == (80 * 2**30, 0.5, 2)
    with pytest.raises(SpecError, match="write for example 80Gi"):
        amount("eighty")
