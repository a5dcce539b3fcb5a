"""`taciturn doctor --kubernetes`: can the gateway run jobs in its cluster?"""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from taciturn.cli.gateway import Answer, no_answer
from taciturn.errors import MissingDependencyError

_CONFIG = "TACITURN_KUBERNETES_CONFIG"


def run_doctor_kubernetes(namespace: str | None = None, *, answer: Answer = no_answer) -> bool:
    """Print what was found, and the remedy of each problem; True if there is none. Advice is none.

    Reads the launcher's settings from the file that TACITURN_KUBERNETES_CONFIG names, and the
    cluster from the pod it runs in, or from KUBECONFIG.

    Raises:
        SpecError: no cluster, or settings that cannot be read.
        MissingDependencyError: the client is not installed.
    """
    try:
        from taciturn.server.launchers.kubernetes.client import Cluster
        from taciturn.server.launchers.kubernetes.preflight import ApiServerQueries, examine
        from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
        from taciturn.server.settings import Settings
    except ImportError as error:
        raise MissingDependencyError(
            f"{error.name} is not installed: pip install 'taciturn[server,kubernetes]'"
        ) from None
    file = os.environ.get(_CONFIG)
    settings = KubernetesSettings.read(Path(file)) if file else KubernetesSettings()
    if namespace is not None:
        settings = settings.model_copy(update={"namespace": namespace})
    kubeconfig = os.environ.get("KUBECONFIG")
    cluster = Cluster.connect(settings.namespace, Path(kubeconfig) if kubeconfig else None)
    url = Settings().storage_url
    findings = examine(
        ApiServerQueries(cluster),
        settings,
        storage=None if url is None else lambda: _round_trip(url),
    )
    title = f"taciturn doctor --kubernetes ({settings.namespace})"
    table = Table("check", "found", "remedy", title=title, title_justify="left")
    for finding in findings:
        advice = "advice: " if finding.advice else ""
        table.add_row(
            finding.what, finding.text, f"{advice}{finding.remedy}" if finding.remedy else "ok"
        )
    console = Console()
    console.print(table)
    healthy = not any(finding.is_problem for finding in findings)
    answer({"healthy": healthy, "findings": findings})
    console.print("jobs can run here" if healthy else "see the remedies above", style="bold")
    return healthy


def _round_trip(url: str) -> str:
    """Write, read and remove a small file; returns the store's name."""
    from taciturn.data.filesystem import open_filesystem

    filesystem, path = open_filesystem(url)
    name = f"{path.rstrip('/')}/.taciturn-doctor"
    filesystem.makedirs(path, exist_ok=True)
    with filesystem.open(name, "wb") as file:
        file.write(b"taciturn")
    with filesystem.open(name, "rb") as file:
        if file.read() != b"taciturn":
            raise OSError("what was written is not what is read")
    filesystem.rm(name)
    return url.partition("?")[0]
