"""The real thing: `taciturn serve`, workers of its own, the client; every kind of job once."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pandas as pd
import pytest

import taciturn
from taciturn.demo import gateway as demo
from taciturn.errors import GatewayError
from taciturn.sdk.dataset import RemoteDataset
from taciturn.wire.events import StageEvent
from taciturn.wire.jobs import JobState

UNIT = "json_extract_string(context, '$.patient_id')"
TEXT = "json_extract_string(context, '$.text') AS text"

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def gateway() -> Iterator[demo.DemoGateway]:
    running = demo.start(n_patients=100)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def data(gateway: demo.DemoGateway) -> RemoteDataset:
    olivia = gateway.client("olivia")
    mock = [{"id": "n1", "context": json.dumps({"text": "Mr Mock coughs.", "patient_id": "P1"})}]
    notes = olivia.add_dataset(
        "notes",
        str(gateway.notes),
        unit=UNIT,
        namespace="patients",
        units=gateway.units,
        columns=["id", "context"],
        epsilon=10,
        delta=1e-5,
        mock=mock,
    )
    olivia.grant("patients", "user:pia", epsilon=8, delta=1e-5)
    notes.wait()
    return gateway.client("pia").dataset("notes").select(TEXT)


@pytest.mark.thorough
def test_every_kind_of_job(gateway: demo.DemoGateway, data: RemoteDataset, tmp_path: Path) -> None:
    pia = gateway.client("pia")
    train, test = data.split(test=0.2)
    model = taciturn.LLM("taciturn/tiny-medical")
    settings: dict[str, Any] = {"method": "lora", "steps": 2, "batch_size": 20, "canaries": 60}
    model.fit(train, text_field="text", target_epsilon=3, **settings)
    assert model.privacy is not None
    assert model.privacy.n_units == 80 + 60
    assert model.policy.startswith("DP (epsilon=")

    found = model.evaluate(test, text_field="text", target_epsilon=0.5)
    assert found.epsilon == pytest.approx(0.5, rel=1e-3)
    public = model.evaluate(["The patient has a cough."])
    assert public.base.nats_per_token > 0
    audit = model.audit()
    assert audit.epsilon_lower_bound <= 3
    written = model.synthesize(4, output=tmp_path / "synthetic.parquet", max_new_tokens=8)
    assert len(written) == 4
    assert len(pd.read_parquet(tmp_path / "synthetic.parquet")) == 4

    told = model.sample(["The patient"], max_new_tokens=6)
    assert "DP (epsilon=" in repr(told)
    remote = pia.models()[0]
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.token("pia"))
    answer = client.completions.create(model=remote.id, prompt="The patient", max_tokens=5)
    assert answer.choices[0].text
    pieces = client.completions.create(
        model=remote.id, prompt="The patient", max_tokens=5, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices)

    scored = client.completions.create(
        model=remote.id, prompt="The patient", max_tokens=5, logprobs=1, echo=True
    ).choices[0]
    of_base = client.completions.create(
        model=f"{remote.id}:base", prompt=scored.text, max_tokens=0, logprobs=0, echo=True
    ).choices[0]
    assert scored.logprobs is not None
    assert of_base.logprobs is not None
    assert of_base.text == scored.text
    assert of_base.logprobs.token_logprobs != scored.logprobs.token_logprobs

    folder = model.save(tmp_path / "saved")
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "privacy_report.json", "certificate.json"} <= names
    assert "private" not in names
    (budget,) = gateway.client("olivia").budgets()
    assert 0 < budget.charged == budget.taken < 1
    assert gateway.client("axel").auditor.verify_ledger()["ok"]


@pytest.mark.thorough
def test_a_fit_learns_from_public_data_first(
    gateway: demo.DemoGateway, data: RemoteDataset, tmp_path: Path
) -> None:
    """From its declaration to the certificate: at no cost, and under its own name."""
    cases = tmp_path / "cases.jsonl"
    lines = (json.dumps({"case": f"Case {n} coughs."}) for n in range(24))
    cases.write_text("\n".join(lines), encoding="utf-8")
    gateway.client("admin").admin.change_user("olivia", sources=[f"{tmp_path}/"])
    olivia, pia = gateway.client("olivia"), gateway.client("pia")
    olivia.add_public_dataset(
        "cases", str(cases), licence="CC0", origin="invented for a test", text_field="case"
    )
    assert [view.name for view in pia.public_datasets()] == ["cases"]
    settings: dict[str, Any] = {"method": "lora", "r": 2, "steps": 2, "batch_size": 20}
    settings |= {"text_field": "text", "target_epsilon": 1, "public_data": "cases"}
    (before,) = olivia.budgets()
    quote = data.plan("taciturn/tiny-medical", **settings)
    assert quote.view.public_data is not None
    without = {name: value for name, value in settings.items() if name != "public_data"}
    plain = data.plan("taciturn/tiny-medical", **without)
    assert quote.view.share_of_budget == plain.view.share_of_budget
    model = taciturn.LLM("taciturn/tiny-medical")
    model.fit(data, **settings)
    (after,) = olivia.budgets()
    assert after.charged > before.charged
    assert model.privacy is not None
    # Shares of unlike jobs do not add up; what its steps come to is what the plan said.
    assert model.privacy.epsilon == pytest.approx(quote.view.epsilon, rel=1e-6)
    (text,) = model.privacy.public_data
    assert (text.name, text.records) == ("cases", 24)
    (certified,) = model.certificate().predicate.public_data
    assert (certified.name, certified.sha256) == ("cases", text.sha256)
    with pytest.raises(GatewayError, match="private data set"):
        data.plan("taciturn/tiny-medical", **{**settings, "public_data": "notes"})


def test_no_row_and_no_word_of_one_is_told(gateway: demo.DemoGateway, data: RemoteDataset) -> None:
    """A selection that fails on real rows fails no job, and what cannot be seen is not found."""
    text = "json_extract_string(context, '$.text')"
    number = f"CAST(CAST({text} AS INTEGER) AS VARCHAR)"
    failing = gateway.client("pia").dataset("notes")
    guarded = f"CASE WHEN contains({text}, 'Mock') THEN 'x' ELSE {number} END AS text"
    failing = failing.select(guarded)
    model = taciturn.LLM("taciturn/tiny-medical")
    settings: dict[str, Any] = {"method": "lora", "steps": 1, "batch_size": 20}
    model.fit(failing, text_field="text", target_epsilon=1, **settings)
    assert model.policy.startswith("DP (epsilon=")
    stranger = gateway.client("axel")
    with pytest.raises(GatewayError):
        stranger.dataset("notes").plan("taciturn/tiny-medical", text_field="text", target_epsilon=1)


def attacks(url: str, over: threading.Event) -> int:
    """Heads without an end, as fast as they are taken, and others a byte at a time; how many were
    hung up on."""
    at, hung_up = urlsplit(url), 0
    slow: list[socket.socket] = []
    while not over.is_set():
        with suppress(OSError):
            slow.append(socket.create_connection((at.hostname, at.port), 2))
            slow[-1].sendall(b"GET /v1/health HTTP/1.1\r\nHost")
        with suppress(OSError), socket.create_connection((at.hostname, at.port), 2) as quick:
            quick.sendall(b"GET /v1/health HTTP/1.1\r\n")
            try:
                for _ in range(10_000):
                    quick.sendall(b"X-Padding: " + b"x" * 65_536 + b"\r\n")
            except OSError:
                hung_up += 1
        for each in slow:
            with suppress(OSError):
                each.sendall(b"x")
    for each in slow:
        each.close()
    return hung_up


@pytest.mark.thorough
def test_a_fit_outlives_an_attack_on_the_door(
    gateway: demo.DemoGateway, data: RemoteDataset
) -> None:
    """By connections of which nobody knows who they are: no sign of life comes too late.

    From the worker's first word on; before, it loads torch, and there is nothing to come late.
    """
    over, model = threading.Event(), taciturn.LLM("taciturn/tiny-medical")
    settings: dict[str, Any] = {"method": "lora", "steps": 12, "batch_size": 20}
    job = model.fit(data, text_field="text", target_epsilon=1, wait=False, **settings)
    assert any(isinstance(event.event, StageEvent) for event in job.events())
    with ThreadPoolExecutor(4) as pool:
        attackers = [pool.submit(attacks, gateway.url, over) for _ in range(4)]
        try:
            assert job.refresh().view.state is JobState.RUNNING
            job.wait(timeout_s=1500)
        finally:
            over.set()
        hung_up = sum(each.result() for each in attackers)
    assert job.view.state is JobState.SUCCEEDED
    assert hung_up > 20
    (seen,) = (each for each in gateway.client("admin").admin.jobs() if each.id == job.id)
    assert seen.attempt == 1


@pytest.mark.thorough
def test_a_copy_gets_no_second_budget(
    gateway: demo.DemoGateway, data: RemoteDataset, tmp_path: Path
) -> None:
    """Another owner registers what is registered: where they may not, where they may, elsewhere."""
    amir, copy = gateway.client("amir"), tmp_path / "copy.parquet"
    shutil.copy(gateway.notes, copy)
    terms: dict[str, Any] = {"unit": UNIT, "units": gateway.units, "epsilon": 100, "delta": 1e-5}
    with pytest.raises(GatewayError, match="administrator"):
        amir.add_dataset("copied", str(copy), namespace="again", **terms)
    gateway.client("admin").admin.change_user("amir", sources=[str(tmp_path)])
    with pytest.raises(GatewayError, match="another namespace"):
        amir.add_dataset("copied", f"file://{gateway.notes}", namespace="again", **terms)
    copied = amir.add_dataset("copied", str(copy), namespace="again", **terms)
    with pytest.raises(GatewayError, match="could not or may not read it"):
        copied.wait()
    (probe,) = amir.jobs()
    assert probe.failure is not None
    assert probe.failure.code == "source_refused"
    told = amir.incident(str(probe.failure.incident))
    assert "ask its administrator" in told
    assert not any(name in told for name in ("olivia", "patients", str(gateway.notes)))
