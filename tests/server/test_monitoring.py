"""The dashboard and the alerts ask for metrics, labels and values that a gateway has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from support.gateway import GatewayWorld
from taciturn.wire.jobs import JobState

_SELECTOR = re.compile(r"\b(taciturn_\w+)(?:\{([^}]*)\})?")
_CONDITION = re.compile(r'(\w+)(=~?)"([^"]*)"')
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


@pytest.fixture(scope="module")
def queries(root: Path) -> dict[str, str]:
    """Title -> query."""
    folder = root / "deploy" / "monitoring"
    dashboard = json.loads((folder / "grafana.json").read_text(encoding="utf-8"))
    rules = yaml.safe_load((folder / "alerts.yaml").read_text(encoding="utf-8"))
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    alerts = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    return panels | alerts


def test_they_ask_for_what_there_is(lite: GatewayWorld, queries: dict[str, str]) -> None:
    lite.populate().add_job("fit")
    lite.services.attend()
    lite.get("jobs")
    text = lite.services.metrics.text().decode()
    labels: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
            for label, value in sample.labels.items():
                values.setdefault((sample.name, label), set()).add(value)
    values["taciturn_jobs", "state"] = {state.value for state in JobState}
    assert len(queries) >= 15
    for title, query in queries.items():
        names = [name for name, _ in _SELECTOR.findall(query)]
        assert names, title
        for name, conditions in _SELECTOR.findall(query):
            assert name in labels, f"{title}: {name}"
            for label, sign, wanted_values in _CONDITION.findall(conditions):
                assert label in labels[name], f"{title}: {name} has no label {label}"
                if label in ("state", "queue"):
                    options = wanted_values.split("|") if sign == "=~" else [wanted_values]
                    assert set(options) <= values[name, label], f"{title}: {wanted_values}"
        for grouping in _GROUPED.findall(query):
            for label in grouping.split(", "):
                assert any(label in labels[name] for name in names), f"{title}: by {label}"
