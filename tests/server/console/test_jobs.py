"""Pages of jobs: the list, a job's stages and figures, its results; the stream behind a page."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from sqlalchemy import Engine, event, insert

from support.console import look, send
from support.gateway import GatewayWorld, fit, plan_of
from taciturn.server.console.work import live_jobs
from taciturn.server.console.work.job_progress import JobProgress
from taciturn.server.console.work.live_jobs import LiveJobs, follow_job, progress_of
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import artifacts, job_events
from taciturn.wire.events import (
    CountEvent,
    JobEvent,
    NodeEvent,
    ProgressEvent,
    Stage,
    StageEvent,
    StateEvent,
)
from taciturn.wire.identity import Role
from taciturn.wire.jobs import JobKind, JobState
from taciturn.wire.machines import MachineUse

TICK_S = 0.05


def say(world: GatewayWorld, job: str, *events: JobEvent) -> None:
    """Have a job say this, and let it be seen."""

    def work(connection: Any) -> None:
        for one in events:
            world.services.events.append(connection, job, one)

    world.gateway.write(work)


def a_fit(world: GatewayWorld, state: str = "running", **columns: Any) -> str:
    body = columns.pop("request", fit())
    job = world.add_job("fit", state=state, request=body, plan=plan_of(body), **columns)
    say(world, job, StateEvent(state=JobState.QUEUED))
    world.clock.forward(10)
    return job


def many_steps(world: GatewayWorld, job: str, steps: int) -> None:
    """Progress of each tick of a long job, straight into the table."""
    now_ms = world.gateway.now_ms()
    rows = [
        {
            "job_id": job,
            "sequence": 10 + step,
            "visible_at_ms": now_ms - 5000 * (steps - step),
            "data": ProgressEvent(step=step, steps=steps, epsilon=step / steps).model_dump_json(),
        }
        for step in range(1, steps + 1)
    ]
    world.gateway.write(lambda connection: connection.execute(insert(job_events), rows))


def test_a_long_job_is_one_query_and_some_hundred_points(console: GatewayWorld) -> None:
    job = a_fit(console)
    many_steps(console, job, 10_000)
    statements = list[str]()
    engine = console.gateway.engine
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    answer = look(console, "paul", f"/jobs/{job}")
    reads = [text for text in statements if "FROM" in text and "job_events" in text]
    assert len(reads) == 1
    assert len(statements) < 20
    spec = json.loads(
        re.search(r'data-chart="([^"]*)"', answer.text)[1].replace("&#34;", '"')  # type: ignore[index]
    )
    steps = spec["x"]["values"]
    assert 300 < len(steps) < 700
    assert steps == sorted(set(steps))
    assert steps[-1] == 10_000
    assert len(answer.content) < 100_000


def test_a_page_of_a_long_job_costs_little_more_than_of_a_short_one(console: GatewayWorld) -> None:
    """By a ratio, not by seconds: all of its events would be twenty times as many objects."""
    jobs = [a_fit(console), a_fit(console)]
    many_steps(console, jobs[0], 500)
    many_steps(console, jobs[1], 10_000)
    caller = console.principal("paul")
    took = list[float]()
    for job in jobs:
        progress_of(console.services, caller, job)
        began = time.process_time()
        for _ in range(5):
            progress_of(console.services, caller, job)
        took.append(time.process_time() - began)
    assert took[1] < 6 * took[0], took


def test_stages_have_their_times(console: GatewayWorld) -> None:
    job = console.add_job("fit", request=fit(), plan=plan_of(fit()))
    for said, seconds in (
        (StateEvent(state=JobState.QUEUED), 60),
        (StateEvent(state=JobState.PROVISIONING), 100),
        (NodeEvent(code="pulling", text="pulling the worker's image"), 40),
        (StateEvent(state=JobState.RUNNING), 5),
        (StageEvent(stage=Stage.LOADING), 20),
        (StageEvent(stage=Stage.READING, padded_s=30), 30),
        (StageEvent(stage=Stage.TRAINING), 600),
        (StageEvent(stage=Stage.RELEASING), 15),
        (StateEvent(state=JobState.SUCCEEDED), 300),
    ):
        say(console, job, said)
        console.clock.forward(seconds)
    use = MachineUse(node="gpu-1", ended="released", node_seconds=1200, cost=1.5, currency="EUR")
    say(console, job, NodeEvent(code="node.released", text="gpu-1 is gone", use=use))
    console.clock.forward(10)
    console.set_job_state(job, "succeeded")
    progress = progress_of(console.services, console.principal("paul"), job)
    assert [(stage.phase, stage.seconds) for stage in progress.stages] == [
        ("queue", 60), ("machine", 100), ("pulling", 40), ("starting", 5), ("loading", 20),
        ("reading", 30), ("training", 600), ("releasing", 15), ("leaving", 300),
    ]  # fmt: skip
    assert all(0 <= s.left <= s.left + s.width <= 1000.001 for s in progress.stages)
    page = look(console, "paul", f"/jobs/{job}").text
    assert "Reading rows" in page
    assert "fixed beforehand" in page
    assert "1.5 EUR" in page


def test_a_job_that_waits_shows_what_comes(console: GatewayWorld) -> None:
    job = a_fit(console, "queued")
    progress = progress_of(console.services, console.principal("paul"), job)
    assert progress.upcoming[0] == "Machine being made"
    assert progress.upcoming[-2:] == ["Training", "Releasing"]
    page = look(console, "paul", f"/jobs/{job}").text
    assert f'data-live="/jobs/{job}/live"' in page


def test_a_machine_that_is_made_shows_that_it_will_go(console: GatewayWorld) -> None:
    job = a_fit(console, "provisioning")
    say(console, job, NodeEvent(code="provisioning", text="a machine is being made"))
    progress = progress_of(console.services, console.principal("paul"), job)
    assert progress.upcoming[0] == "Worker's image being pulled"
    assert progress.upcoming[-2:] == ["Releasing", "Machine being removed"]


def test_a_lost_worker_begins_its_curve_again(console: GatewayWorld) -> None:
    job = a_fit(console)
    for step, epsilon in ((10, 0.2), (20, 0.4), (30, 0.6), (10, 0.7), (20, 0.8)):
        say(console, job, ProgressEvent(step=step, steps=100, epsilon=epsilon))
        console.clock.forward(10)
    progress = progress_of(console.services, console.principal("paul"), job)
    assert progress.curve == [(10, 0.7), (20, 0.8)]


def test_cancelling_says_what_stays_spent(console: GatewayWorld) -> None:
    job = console.submit(fit(steps=100)).json()["id"]
    console.clock.forward(10)
    assert "nothing is spent yet" in look(console, "paul", f"/jobs/{job}").text
    say(console, job, ProgressEvent(step=39, steps=100, epsilon=0.617))
    console.clock.forward(10)
    page = look(console, "paul", f"/jobs/{job}").text
    confirmation = re.search(r'hx-confirm="([^"]*)"', page)
    assert confirmation is not None
    assert "Epsilon 0.617 is spent and stays spent" in confirmation[1]
    progress = progress_of(console.services, console.principal("paul"), job)
    assert progress.view.cost is not None
    assert progress.spent_share == pytest.approx(0.4 * progress.view.cost.share_of_budget)
    assert "hx-confirm" not in look(console, "ann", f"/jobs/{job}").text
    send(console, "paul", f"/jobs/{job}/cancellations")
    console.clock.forward(10)
    page = look(console, "paul", f"/jobs/{job}").text
    assert f"/plan?like={job}" in page
    assert "data-live" not in page


def test_a_failure_says_its_remedy_and_where_its_log_is(console: GatewayWorld) -> None:
    job = a_fit(console, "failed", failure="resources", incident="inc_1")
    page = look(console, "paul", f"/jobs/{job}").text
    assert "ask for smaller microbatches" in page
    assert "inc_1" in page
    assert "/incidents/inc_1" not in page
    assert f'href="/plan?like={job}"' in page
    assert 'href="/incidents/inc_1"' in look(console, "olga", f"/jobs/{job}").text


def test_who_may_approve_is_said(console: GatewayWorld) -> None:
    console.set_terms(approvers=["user:otto", "group:board"])
    job = console.submit(fit(target_epsilon="unlimited")).json()["id"]
    page = look(console, "paul", f"/jobs/{job}").text
    assert "0 of 2 have approved" in page
    assert "olga, otto, the group board" in page


def test_the_model_of_a_fit_is_one_click_away(console: GatewayWorld) -> None:
    job = a_fit(console, "succeeded", model_id="mdl_1")
    assert 'href="/models/mdl_1"' in look(console, "paul", f"/jobs/{job}").text


@pytest.mark.parametrize("kind", ["sample", "synthesize", "evaluate", "audit"])
def test_each_kind_of_job_has_its_page(console: GatewayWorld, kind: str) -> None:
    model = console.add_model(console.add_job("fit", state="succeeded"))
    job = console.add_job(kind, state="running", model_id=model, request={"kind": kind})
    say(console, job, StateEvent(state=JobState.RUNNING), CountEvent(done=3, of=12))
    console.clock.forward(10)
    page = look(console, "paul", f"/jobs/{job}").text
    assert "3 of 12" in page
    assert f'href="/models/{model}"' in page
    console.set_job_state(job, "succeeded")  # with files that are gone: the page is there
    assert look(console, "paul", f"/jobs/{job}").status_code == 200


def test_the_list_has_filters_that_pages_keep(console: GatewayWorld) -> None:
    for _ in range(3):
        console.clock.forward(1)
        a_fit(console, "failed")
    a_fit(console, "succeeded", started_at_ms=console.gateway.now_ms() - 90_000)
    page = look(console, "paul", "/jobs?state=failed&kind=fit&limit=2").text
    older = re.search(r'href="(/jobs\?state=failed&amp;kind=fit&amp;cursor=[^"]*)"', page)
    assert older is not None
    rest = look(console, "paul", older[1].replace("&amp;", "&")).text
    assert rest.count("<tr>") == 2  # its head, and the third one
    assert "/jobs?state=failed&amp;kind=fit" in rest
    assert "No job matches" in look(console, "paul", "/jobs?state=cancelled").text
    assert "There is no job yet" in look(console, "petra", "/jobs").text
    assert look(console, "paul", "/jobs?state=nonsense").status_code == 422
    assert '<td class="number">1</td>' in look(console, "paul", "/jobs").text, "epsilon"


def test_a_job_of_others_is_not_there(console: GatewayWorld) -> None:
    job = a_fit(console)
    for path in (f"/jobs/{job}", f"/jobs/{job}/progress", f"/jobs/{job}/live"):
        assert look(console, "petra", path).status_code == 404
        assert look(console, "adam", path).status_code == 403
        assert console.client.get(path).status_code == 401
    over = a_fit(console, "succeeded")
    assert look(console, "paul", f"/jobs/{over}/live").status_code == 204


# The stream, on real time with short ticks


@pytest.fixture
def live(lite_engine: Engine, tmp_path: Path) -> GatewayWorld:
    world = GatewayWorld.open(lite_engine, tmp_path, tick_s=TICK_S).populate()
    object.__setattr__(world.gateway, "clock", lambda: datetime.now(UTC))
    return world


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def always() -> bool:
    return True


def parsed(chunk: bytes) -> dict[str, Any]:
    """Messages of a chunk by their names."""
    parts = [part for part in chunk.decode().split("\n\n") if part.startswith("event:")]
    pairs = [part.split("\n", 1) for part in parts]
    return {name[7:]: json.loads(data[6:]) for name, data in pairs}


def test_readers_share_one_watcher_and_one_rendering(
    live: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = live.add_job(JobKind.FIT, request=fit(), plan=plan_of(fit()))
    rendered = list[str]()
    monkeypatch.setattr(
        live_jobs, "fragment", lambda name, **values: rendered.append(name) or "<p>stages</p>"
    )
    jobs, caller = LiveJobs(live.services), live.principal("paul")

    async def read(chunks: list[bytes]) -> None:
        async for chunk in jobs.stream(caller, job, always):
            chunks.append(chunk)

    async def test() -> None:
        readers = [list[bytes]() for _ in range(50)]
        tasks = [asyncio.create_task(read(chunks)) for chunks in readers]
        await asyncio.sleep(0.3)
        assert live.services.broadcast.watching == 1
        before = len(rendered)
        for step in range(1, 4):
            say(live, job, ProgressEvent(step=step, steps=9, epsilon=step / 10))
            await asyncio.sleep(3 * TICK_S)
        assert len(rendered) == before, "figures need no page"
        say(live, job, StageEvent(stage=Stage.RELEASING), NodeEvent(code="x", text="two at once"))
        await asyncio.sleep(6 * TICK_S)
        assert len(rendered) == before + 1, "what a tick brings is rendered once"
        say(live, job, StateEvent(state=JobState.SUCCEEDED))
        await asyncio.gather(*tasks)
        for chunks in readers:
            messages = [parsed(chunk) for chunk in chunks]
            points = [item["figures"]["point"] for item in messages if "figures" in item]
            assert [3, 0.3] in points
            assert "over" in messages[-1]
            assert chunks[0].startswith(b"retry:")
        await asyncio.sleep(0.1)
        assert jobs.boards == 0
        assert live.services.broadcast.watching == 0

    run(test)


def test_who_comes_back_begins_with_what_is_there(live: GatewayWorld) -> None:
    job = live.add_job(JobKind.FIT, request=fit(), plan=plan_of(fit()))
    say(live, job, ProgressEvent(step=7, steps=9, epsilon=0.5))
    time.sleep(3 * TICK_S)
    jobs, caller = LiveJobs(live.services), live.principal("paul")

    async def test() -> None:
        for _ in range(2):
            stream = jobs.stream(caller, job, always)
            await anext(stream)
            first = parsed(await anext(stream))
            assert set(first) == {"stages", "figures"}
            assert first["figures"]["texts"]["steps"] == "7"
            await stream.aclose()  # type: ignore[attr-defined]
            assert jobs.boards == 0

    run(test)


@pytest.mark.parametrize("loss", ["revoked", "disabled", "expired"])
def test_a_stream_ends_when_access_is_lost(
    live: GatewayWorld, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_jobs, "_BEAT_S", 0.05)
    live.person("pia", Role.PRACTITIONER)
    job = live.add_job(JobKind.FIT, requester="pia", request=fit(), plan=plan_of(fit()))
    caller = live.principal("pia")
    directory = live.services.directory
    headers = [(b"authorization", f"Bearer {live.tokens['pia']}".encode())]
    request = Request(
        {"type": "http", "method": "GET", "path": f"/jobs/{job}/live", "headers": headers,
         "app": live.app, "state": {}, "query_string": b""}
    )  # fmt: skip

    def lose() -> None:
        if loss == "revoked":
            directory.revoke(caller.token_id)
        elif loss == "disabled":
            live.ask("adam", "PATCH", "/users/pia", {"disabled": True})
        else:
            object.__setattr__(live.gateway, "clock", lambda: datetime(2100, 1, 1, tzinfo=UTC))

    async def test() -> None:
        answer = await follow_job(request, caller, live.services, job)
        stream = answer.body_iterator  # type: ignore[attr-defined]
        await anext(stream)
        assert "figures" in parsed(await anext(stream))
        await asyncio.to_thread(lose)
        async for chunk in stream:
            assert chunk == b": alive\n\n"  # none of what comes after

    run(test)


def test_a_page_has_room_for_so_many_readers(
    live: GatewayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_jobs, "_MOST_READERS", 0)
    with pytest.raises(ProblemError, match="too many"):
        LiveJobs(live.services).check_room()


def test_a_long_live_job_keeps_a_bounded_curve() -> None:
    view: Any = None
    progress = JobProgress(view)
    for step in range(1, 10_001):
        progress._step(
            ProgressEvent(step=step, steps=10_000, epsilon=step / 1e4), datetime.now(UTC)
        )
    assert 500 <= len(progress.curve) <= 1001
    assert progress.curve[-1] == (10_000, 1.0)


def test_figures_of_an_evaluation_are_shown(console: GatewayWorld) -> None:
    model = console.add_model(console.add_job("fit", state="succeeded"))
    job = console.add_job(
        "evaluate", state="succeeded", model_id=model, request={"kind": "evaluate"}
    )

    def score(nats: float) -> dict[str, Any]:
        return {"nats_per_token": {"value": nats, "std": 0.05}, "token_accuracy": {"value": 0.25}}

    figures = {
        "basis": "differential privacy", "n_units": 1100, "epsilon": 0.5, "delta": 1e-6,
        "base": score(3.5), "fitted": score(2.75), "gain": score(0.75),
        "preferred": 0.875, "preferred_std": 0.0625,
    }  # fmt: skip
    row = {
        "job_id": job, "name": "evaluation.json", "size_bytes": 900, "sha256": "0" * 64,
        "content": json.dumps(figures), "created_at_ms": 0,
    }  # fmt: skip
    console.gateway.write(lambda connection: connection.execute(insert(artifacts).values(row)))
    page = look(console, "paul", f"/jobs/{job}").text
    assert "2.75" in page
    assert "± 0.05" in page
    assert re.search(r"Pairs ranked as people did.*0\.875.*± 0\.0625", page)
    assert f"/v1/jobs/{job}/files/evaluation.json" in page
    assert "2.75" not in look(console, "ann", f"/jobs/{job}").text, "an auditor follows jobs alone"
