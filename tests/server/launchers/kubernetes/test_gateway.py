"""What the launcher takes from the gateway's database, and what it writes there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import Connection, insert, select, update

from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import make_plan
from taciturn.server.bootstrap import open_gateway
from taciturn.server.context import Gateway
from taciturn.server.launchers.base import LaunchError
from taciturn.server.launchers.kubernetes import events
from taciturn.server.launchers.kubernetes.client import Cluster
from taciturn.server.launchers.kubernetes.events import StatusEvents
from taciturn.server.launchers.kubernetes.factory import Kubernetes
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.sizing import Needs
from taciturn.server.schema.tables import base_models, job_events, jobs, users
from taciturn.server.settings import Settings
from taciturn.spec import FitSpec
from taciturn.wire.events import JOB_EVENT, JobEvent, NodeEvent, ProgressEvent

POOLS = (
    Pool(name="cpu", memory="8Gi", price_per_hour=0.1),
    Pool(name="l4", gpus=1, gpu_memory="24Gi", price_per_hour=0.7),
    Pool(name="a100", gpus=1, gpu_memory="80Gi", price_per_hour=4),
)
SETTINGS = KubernetesSettings(
    pools=POOLS, data_secret="data", data_secrets={"patients": "patients-data"}
)
JOB = "job_0123456789abcdef"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """On SQLite, with a user and base models."""
    opened = open_gateway(Settings(data_dir=tmp_path))

    def work(connection: Connection) -> None:
        person = {"id": "usr_1", "name": "ada", "roles": "[]", "disabled": False}
        connection.execute(insert(users).values(**person, created_at_ms=0))
        for name, parameters in (("tiny", 3_000_000), ("llama", 22_000_000_000)):
            connection.execute(
                insert(base_models).values(
                    name=name, parameters=parameters, context_length=4096, vocabulary=32_000,
                    created_at_ms=0,
                )
            )  # fmt: skip

    opened.write(work)
    yield opened
    opened.engine.dispose()


def add(gateway: Gateway, kind: str, request: dict[str, Any], **more: Any) -> None:
    """A job of that kind."""
    values = {
        "id": JOB, "kind": kind, "state": "queued", "requester_id": "usr_1", "grants": "[]",
        "request": json.dumps({"kind": kind, **request}), "attempt": 1, "cancel": False,
        "policy": "{}", "created_at_ms": 0, "updated_at_ms": 0, **more,
    }  # fmt: skip
    gateway.write(lambda connection: connection.execute(insert(jobs).values(**values)))


def add_fit(gateway: Gateway, model: str, parameters: int, **request: Any) -> None:
    plan = make_plan(
        FitSpec(target_epsilon=3, delta=1e-5), PublicFacts(5000, model, parameters, 4096)
    )
    asked = {"model": model, "data": {"dataset": "notes"}, "target_epsilon": 3, "delta": 1e-5}
    add(gateway, "fit", {**asked, **request}, plan=plan.model_dump_json())


def test_a_fit_gets_a_machine_of_its_size_and_the_datas_secret(gateway: Gateway) -> None:
    add_fit(gateway, "llama", 22_000_000_000)
    need = Needs(gateway, SETTINGS)(JOB)
    assert (need.machine.pool.name, need.data_secret) == ("a100", "data")


def test_a_requester_may_ask_for_another(gateway: Gateway) -> None:
    add_fit(gateway, "tiny", 3_000_000, machine={"gpus": 1})
    assert Needs(gateway, SETTINGS)(JOB).machine.pool.name == "l4"


SEVERAL = (
    Pool(name="one", gpus=1, gpu_memory="40Gi", price_per_hour=0.7, max_nodes=4),
    Pool(name="eight", gpus=8, gpu_memory="40Gi", price_per_hour=6, max_nodes=4),
)


@pytest.mark.parametrize(
    ("request_", "settings", "shape"),
    [
        ({"sharding": "full"}, {}, ("eight", 1, 2)),
        ({"sharding": "full"}, {"several": False}, None),
        ({}, {}, None),
        ({"machine": {"gpus": 2}}, {}, ("eight", 1, 2)),
        ({"machine": {"gpus": 16}}, {}, None),
        ({"machine": {"gpus": 16}}, {"workspace_claim": "claim"}, ("eight", 2, 8)),
    ],
    ids=str,
)
def test_a_fit_is_spread_where_it_asks_for_that(
    request_: dict[str, Any],
    settings: dict[str, Any],
    shape: tuple[str, int, int] | None,
    gateway: Gateway,
) -> None:
    """Several machines only where all of them see one folder."""
    add_fit(gateway, "llama", 22_000_000_000, **request_)
    needs = Needs(gateway, KubernetesSettings(pools=SEVERAL, **settings))
    if shape is None:
        with pytest.raises(LaunchError):
            needs(JOB)
    else:
        machine = needs(JOB).machine
        assert (machine.pool.name, machine.nodes, machine.gpus) == shape


def test_only_those_who_need_the_key_of_checkpoints_get_it(gateway: Gateway) -> None:
    kept = {"checkpoint_url": "s3://bucket/checkpoints", "checkpoint_secret": "vault"}
    needs = Needs(gateway, SETTINGS.model_copy(update=kept))
    add_fit(gateway, "tiny", 3_000_000)
    assert needs(JOB).checkpoint_secret == "vault"
    for kind, secret in (("audit", "vault"), ("sample", ""), ("probe", ""), ("evaluate", "")):
        change = update(jobs).values(kind=kind, plan=None)
        gateway.write(lambda connection, change=change: connection.execute(change))  # type: ignore[misc]
        assert needs(JOB).checkpoint_secret == secret


@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({}, False),
        ({"workspace_claim": "claim"}, True),
        ({"checkpoint_url": "s3://bucket/checkpoints", "checkpoint_secret": "vault"}, True),
    ],
    ids=str,
)
def test_what_a_worker_leaves_is_there_later_where_there_is_a_place_for_it(
    settings: dict[str, str], keeps: bool, gateway: Gateway
) -> None:
    cluster = Mock(spec=Cluster)
    assert Kubernetes(gateway, KubernetesSettings(**settings), cluster).keeps is keeps


def test_a_probe_needs_no_gpu(gateway: Gateway) -> None:
    add(gateway, "probe", {"dataset": "notes"})
    assert Needs(gateway, SETTINGS)(JOB).machine.pool.name == "cpu"


def test_a_sample_needs_its_models_weights_and_no_data(gateway: Gateway) -> None:
    add(gateway, "sample", {"model": "mdl_1", "prompts": ["x"]}, model_id="mdl_1")
    assert Needs(gateway, SETTINGS)(JOB).machine.pool.name == "cpu"
    assert Needs(gateway, SETTINGS)(JOB).data_secret == ""


def test_a_job_that_is_not_there(gateway: Gateway) -> None:
    with pytest.raises(LaunchError, match="there is no job"):
        Needs(gateway, SETTINGS)(JOB)


def test_news_are_written_once(gateway: Gateway) -> None:
    add(gateway, "probe", {"dataset": "notes"})

    def append(connection: Connection, job_id: str, event: JobEvent) -> None:
        sequence = len(connection.execute(select(job_events)).all())
        data = JOB_EVENT.dump_json(event).decode()
        values = {"job_id": job_id, "sequence": sequence, "data": data, "visible_at_ms": 0}
        connection.execute(insert(job_events).values(**values))

    news = StatusEvents(gateway, append)
    told = ["provisioning", "running", "running", "node.released", "running", "interrupted",
            "node.released", "running"]  # fmt: skip
    for code in told:
        news(f"{JOB}-1", NodeEvent(code=code, text=code))
    news("job_ffffffffffffffff-1", NodeEvent(code="running", text="running"))
    rows = gateway.read(
        lambda connection: connection.execute(
            select(job_events.c.data).order_by(job_events.c.sequence)
        ).scalars().all()
    )  # fmt: skip
    codes = [json.loads(row)["code"] for row in rows]
    assert codes == ["provisioning", "running", "node.released", "interrupted", "running"]


def test_a_long_job_is_not_read_for_each_status(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(gateway, "probe", {"dataset": "notes"})
    progress = ProgressEvent(step=1, steps=9, epsilon=0.1)
    texts = [JOB_EVENT.dump_json(progress).decode()] * 500
    texts[5] = JOB_EVENT.dump_json(NodeEvent(code="running", text="running")).decode()
    rows = [
        {"job_id": JOB, "sequence": number, "data": data, "visible_at_ms": 0}
        for number, data in enumerate(texts)
    ]
    gateway.write(lambda connection: connection.execute(insert(job_events), rows))
    reader = Mock(wraps=JOB_EVENT)
    monkeypatch.setattr(events, "JOB_EVENT", reader)
    written: list[JobEvent] = []
    news = StatusEvents(gateway, lambda connection, job, event: written.append(event))
    for code in ("running", "node.released", "node.released", "pulling"):
        news(f"{JOB}-1", NodeEvent(code=code, text=code))
    assert [event.code for event in written if isinstance(event, NodeEvent)] == [
        "node.released",
        "node.released",
        "pulling",
    ], "nothing was kept here but the first status"
    assert reader.validate_json.call_count == 2
