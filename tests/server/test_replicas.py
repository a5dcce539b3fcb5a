"""Two gateways on one PostgreSQL server: a worker has reached one, its readers the other, and
either is killed in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import func, insert, select, update

from support import released_files
from support.gateway import MODEL, NAMESPACE, GatewayWorld
from support.postgres import PostgresServer
from support.receivers import receiver
from taciturn.sdk.stream import job_events
from taciturn.sdk.transport import Transport
from taciturn.server.bootstrap import open_engine, open_gateway
from taciturn.server.context import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.jobs.events import numbered
from taciturn.server.schema import versions
from taciturn.server.schema.tables import job_events as event_table
from taciturn.server.schema.tables import jobs, models, text_pieces
from taciturn.server.settings import Settings
from taciturn.wire.events import NumberedEvent, ProgressEvent, StateEvent
from taciturn.wire.jobs import JobState
from taciturn.wire.worker import EventBatch, Outcome, TextChunk
from taciturn.worker.client import GatewayClient

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

WORDS = [f"word-{number} " for number in range(30)]
PROMPT, LINE = (
    "The patient",
    '{"kind": "DP", "text": "DP (epsilon=3, delta=1e-06, unit=patient_id)"}',
)


class Service:
    """A Service of Kubernetes: passes each connection on to the first gateway that accepts it."""

    def __init__(self, *ports: int) -> None:
        self.ports = ports
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        for port in self.ports:
            with suppress(OSError):
                gateway = socket.create_connection(("127.0.0.1", port), 1)
                gateway.settimeout(None)
                threading.Thread(target=self._pass, args=(gateway, client), daemon=True).start()
                return self._pass(client, gateway)
        return client.close()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Replica:
    """A gateway in a process of its own, with a launcher whose workers are always about to come."""

    def __init__(self, settings: dict[str, str], folder: Path, root: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        folder.mkdir()
        self.folder = folder
        path = os.pathsep.join([str(root / "bench"), str(root / "src"), str(root / "tests")])
        own = {"TACITURN_PORT": str(self.port), "TACITURN_DATA_DIR": str(folder)}
        self.environment = {**os.environ, **settings, **own, "PYTHONPATH": path}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateways.served"],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self) -> None:
        until(self._answers)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with suppress(httpx.TransportError):
            # No TLS here: certificates would be read for each call, in 40 ms.
            address = f"http://127.0.0.1:{self.port}/v1/ready"
            return httpx.get(address, timeout=60, verify=False).is_success
        return False


class Pair:
    """Both of them, and people around them."""

    def __init__(self, gateway: Gateway, near: Replica, far: Replica) -> None:
        self.gateway, self.near, self.far = gateway, near, far
        self.world = GatewayWorld(gateway).populate()
        self.model = self._model()
        self.for_workers = Service(near.port, far.port)
        self.for_readers = Service(far.port, near.port)

    def _model(self) -> str:
        now_ms = self.gateway.now_ms()
        owner = {"namespace": NAMESPACE, "policy": LINE, "created_at_ms": now_ms}
        fit = {
            "id": "job_fit", "kind": "fit", "state": "succeeded", "request": "{}", "grants": "[]",
            "requester_id": self.world.users["paul"], "attempt": 1, "cancel": False,
            "updated_at_ms": now_ms,
        }  # fmt: skip
        model = {
            "id": "mdl_1", "job_id": "job_fit", "owner_id": self.world.users["paul"],
            "base_model": MODEL, "report": "{}",
        }  # fmt: skip
        self.gateway.write(lambda connection: connection.execute(insert(jobs).values(fit | owner)))
        self.gateway.write(
            lambda connection: connection.execute(insert(models).values(model | owner))
        )
        return "mdl_1"

    def worker(self) -> GatewayClient:
        """The worker of the newest sample job, which has its lease."""

        def provisioned() -> str | None:
            query = select(jobs.c.id).where(jobs.c.state == "provisioning", jobs.c.kind == "sample")
            rows = self.gateway.rows(query)
            return str(rows[0].id) if rows else None

        job: str = until(provisioned)
        made = Directory(self.gateway).create_worker_token(job, 1)
        held = {"state": "running", "worker_token": made.id, "attempt": 1, "lease": 1}
        held["lease_until_ms"] = self.gateway.now_ms() + 10**9
        change = update(jobs).where(jobs.c.id == job).values(held)
        self.gateway.write(lambda connection: connection.execute(change))
        client = GatewayClient.connected(self.for_workers.url, job, made.text)
        client.lease = 1
        return client

    def text(self) -> str:
        """What a client of OpenAI's API gets, piece by piece."""
        client = openai.OpenAI(
            base_url=f"{self.for_readers.url}/v1", api_key=self.world.tokens["paul"], max_retries=0
        )
        pieces = client.completions.create(model=self.model, prompt=PROMPT, stream=True)
        return "".join(piece.choices[0].text for piece in pieces if piece.choices)

    def events(self, job: str) -> list[NumberedEvent]:
        """What the SDK gets."""
        return list(job_events(Transport(self.for_readers.url, self.world.tokens["paul"]), job))


@pytest.fixture(scope="module")
def pair(
    cluster: PostgresServer, tmp_path_factory: pytest.TempPathFactory, root: Path
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("replicas")
    settings = {
        "TACITURN_DATABASE_URL": cluster.create("replicas"),
        "TACITURN_LEDGER_KEY": "11" * 32,
        "TACITURN_STORAGE_URL": f"file://{folder / 'storage'}",
        "TACITURN_PUBLIC_URL": "http://gateway.example",
        "TACITURN_TICK_S": "0.5",
        "TACITURN_PROCESSES": "1",
        "TACITURN_NOTIFICATION_NETWORKS": '["127.0.0.0/8"]',
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setenv("TACITURN_DATA_DIR", str(folder))
        own = Settings()
    versions.upgrade(open_engine(own))
    gateway = open_gateway(own)
    replicas = [Replica(settings, folder / name, root) for name in ("near", "far")]
    both = Pair(gateway, *replicas)
    with ExitStack() as stack:
        for replica in replicas:
            replica.start()
            stack.callback(replica.end)
        for replica in replicas:
            replica.wait()
        yield both
    gateway.engine.dispose()


@contextmanager
def again(replica: Replica) -> Iterator[None]:
    """Start it again for the next test."""
    yield
    assert replica.process is not None
    replica.process.wait(200)
    replica.start()
    replica.wait()


def test_two_gateways_send_a_notification_once(pair: Pair) -> None:
    with receiver() as hook:
        new = {"name": "chat", "url": hook.url}
        endpoint = pair.world.ask("paul", "POST", "/notifications/endpoints", new).json()["id"]
        for _ in range(3):
            body = {"endpoint": endpoint}
            assert pair.world.ask("paul", "POST", "/notifications/tests", body).status_code == 202
        until(lambda: len(hook.arrivals) >= 3)
        time.sleep(6)  # turns of both
        ids = [arrival.headers["webhook-id"] for arrival in hook.arrivals]
        assert len(ids) == len(set(ids)) == 3
        page = pair.world.ask("paul", "GET", "/notifications/deliveries").json()
        assert [item["state"] for item in page["items"]] == ["sent"] * 3


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        ("near", signal.SIGKILL),  # the worker's
        ("far", signal.SIGTERM),  # the readers', as in a rolling upgrade
        ("far", signal.SIGKILL),  # the readers'
    ],
)
def test_no_stream_is_lost(pair: Pair, victim: str, how: signal.Signals) -> None:
    replica: Replica = getattr(pair, victim)
    with again(replica), ThreadPoolExecutor(3) as pool:
        text: Future[str] = pool.submit(pair.text)
        worker = pair.worker()
        events: Future[list[NumberedEvent]] = pool.submit(pair.events, worker.job)
        offset = 0
        for number, word in enumerate(WORDS):
            worker.text(TextChunk(text=word, offset=offset))
            offset += len(word)
            progress = ProgressEvent(step=number + 1, steps=len(WORDS))
            worker.events(EventBatch(first=number, events=(progress,)))
            time.sleep(0.1)
            if number == 10:
                replica.end(how)
        path = replica.folder / "samples.jsonl"
        path.write_bytes(released_files.samples((PROMPT, "".join(WORDS))))
        worker.text(TextChunk(text="", last=True))
        worker.file("samples.jsonl", path)
        worker.outcome(Outcome(succeeded=True))
        seen = events.result(200)
        if (victim, how) == ("far", signal.SIGKILL):  # OpenAI's protocol does not resume
            with pytest.raises((openai.APIError, httpx.TransportError)):
                text.result(200)
        else:
            assert text.result(200) == "".join(WORDS)
    query = select(event_table).where(event_table.c.job_id == worker.job)
    rows = pair.gateway.rows(query.order_by(event_table.c.sequence))
    assert seen == [numbered(row) for row in rows]
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].event == StateEvent(state=JobState.SUCCEEDED)
    assert sum(isinstance(event.event, ProgressEvent) for event in seen) > 3
    if (victim, how) != ("far", signal.SIGKILL):
        until(lambda: not pair.gateway.rows(select(func.count(text_pieces.c.data)))[0][0])


def test_a_warm_worker_gets_a_job_that_was_asked_for_at_the_other_gateway(pair: Pair) -> None:
    """And which gateway dispatches does not matter."""
    with ThreadPoolExecutor(2) as pool:
        text = pool.submit(pair.text)
        worker = pair.worker()
        finish(worker, pair)
        assert text.result(200)
        following = pool.submit(worker.next)
        time.sleep(1)
        other = pool.submit(pair.text)
        job = following.result(200)
        assert job.job is not None
        change = update(jobs).where(jobs.c.id == job.job)
        held = {"state": "running", "lease": 1, "lease_until_ms": pair.gateway.now_ms() + 10**9}
        pair.gateway.write(lambda connection: connection.execute(change.values(held)))
        again = worker.of_job(job.job, str(job.token))
        again.lease = 1
        finish(again, pair)
        assert other.result(200)


def finish(worker: GatewayClient, pair: Pair) -> None:
    path = pair.near.folder / "samples.jsonl"
    path.write_bytes(released_files.samples((PROMPT, "Once")))
    worker.text(TextChunk(text="Once", offset=0))
    worker.text(TextChunk(text="", last=True))
    worker.file("samples.jsonl", path)
    worker.outcome(Outcome(succeeded=True))


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
