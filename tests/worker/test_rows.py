"""A row decides nothing: what leaves a worker is the same, whatever happens over that row.

A row is made to raise every kind of exception, or to hang, wherever rows are read. Events, charges,
codes, files and the time at which they leave must be what they are of the data without that row.
"""

from __future__ import annotations

import builtins
import copy
import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load as load_tensors
from transformers import AutoTokenizer

import taciturn.errors
from taciturn.data import fields
from taciturn.data.rows import Skipped, attempted, surviving
from taciturn.data.schema_fields import Fields
from taciturn.data.split import Split
from taciturn.data.sql import run
from taciturn.data.tokens import encoding
from taciturn.data.tokens.encoding import DeclaredEncoder
from taciturn.data.tokens.tokenize import SKIPPED
from taciturn.engine.model import load
from taciturn.engine.privacy.rng import SecureStream
from taciturn.planning.plan import TrainingPlan
from taciturn.wire.events import FailureCode
from taciturn.wire.jobs import DataRef, Part, RemoteEvaluate
from taciturn.wire.worker import Assignment, BaseModelFacts, ReleasePlan
from taciturn.worker import heartbeat
from taciturn.worker import job as worker_job
from taciturn.worker.egress import Egress
from taciturn.worker.job import Runner
from taciturn.worker.timing_padding import TimingPadding
from worker.fake_gateway import FakeGateway
from worker.jobs import assignment, notes, plan_of, request, source, write

MODEL = "mod_0000000000000001"
TELLTALE = "TELLTALE"
ROW = {"id": f"p3_{TELLTALE}", "text": f"{TELLTALE} has it."}


class Panic(BaseException):
    """As pyo3 raises where Rust panics: no Exception."""


def _made(kind: type[BaseException]) -> BaseException | None:
    for arguments in ((), ("x",), ("utf-8", b"x", 0, 1, "x"), ("x", 0, 1, "x"), ("x", [OSError()])):
        try:
            return kind(*arguments)
        except TypeError:
            continue
    return None


def _ours(module: Any, root: type[BaseException]) -> list[type[BaseException]]:
    found = (each for each in vars(module).values() if isinstance(each, type))
    return [kind for kind in found if issubclass(kind, root)]


STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)
KINDS = {
    kind.__name__: kind
    for kind in [
        *_ours(builtins, BaseException),
        *_ours(duckdb, Exception),
        *_ours(pa.lib, Exception),
        *_ours(jinja2.exceptions, Exception),
        *_ours(taciturn.errors, Exception),
        torch.OutOfMemoryError,
        Panic,
    ]
    if not issubclass(kind, STOPS) and _made(kind) is not None
}
FEW = ("ValueError", "MemoryError", "RecursionError", "ModelError", "Panic")


def test_the_kinds_are_all_kinds() -> None:
    assert len(KINDS) > 100
    assert set(FEW) < set(KINDS)


# Where rows are read, a call of which the argument tells whether the row is among them.


def _raises(kind: str) -> Callable[[], None]:
    def act() -> None:
        error = _made(KINDS[kind])
        assert error is not None
        raise error

    return act


def _holds(value: object) -> bool:
    if isinstance(value, pa.RecordBatch | pa.Table):
        value = value.to_pydict()
    elif isinstance(value, pa.Array):
        value = value.to_pylist()
    return TELLTALE in str(value)


def _at(owner: Any, name: str, place: int) -> Callable[[pytest.MonkeyPatch, Any], None]:
    """Something happens where `owner.name` is called with the row as the argument at `place`."""

    def arrange(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
        real = getattr(owner, name)

        def calling(*arguments: Any, **options: Any) -> Any:
            if _holds(arguments[place]):
                act()
            return real(*arguments, **options)

        patch.setattr(owner, name, calling)

    return arrange


def _tokenizer(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = load.AutoTokenizer.from_pretrained

    def loaded(*arguments: Any, **options: Any) -> Any:
        tokenizer = real(*arguments, **options)

        class Failing(type(tokenizer)):  # type: ignore[misc]
            def __call__(self, text: Any, **options: Any) -> Any:
                if TELLTALE in str(text):
                    act()
                return super().__call__(text, **options)

        tokenizer.__class__ = Failing
        return tokenizer

    patch.setattr(load.AutoTokenizer, "from_pretrained", loaded)


STAGES: dict[str, Callable[[pytest.MonkeyPatch, Callable[[], None]], None]] = {
    "unit": _at(run, "_named_only", 0),
    "split": _at(Split, "_filtered", 1),
    "select": _at(run, "_put_together", 1),
    "text": _at(fields, "_texts", 0),
    "encode": _at(encoding, "_strings", 0),
    "tokenizer": _tokenizer,
}


def _rows(*more: dict[str, str]) -> list[dict[str, str]]:
    return [*notes(), *more, {"id": "p2_9", "text": "Another note."}]


class Watch:
    """The real time, and what somebody would have slept."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.slept_s

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


BUCKET_S = 60.0


@pytest.fixture(scope="module")
def jobs(
    base: BaseModelFacts, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Assignment, Assignment]]:
    """Of each kind, the job with the row and the one without it."""
    folder = tmp_path_factory.mktemp("rows")
    paths = [write(_rows(ROW), folder / "with.jsonl"), write(_rows(), folder / "without.jsonl")]
    data = DataRef(dataset="notes", select="id, text", part=Part(side="train", test_share=0.1))
    fit = request(base.name, steps=2, data=data)
    evaluate = RemoteEvaluate(
        model=MODEL,
        data=data,
        target_epsilon=2.0,
        max_tokens=32,
        samples=20,
        max_new_tokens=2,
        seed=5,
    )
    common = {"bucket_s": BUCKET_S, "lease_s": 4 * 3600.0}
    fits = [
        assignment(fit, source=source(path), plan=plan_of(fit, base), base_model=base, **common)
        for path in paths
    ]
    plan = ReleasePlan(noise_multiplier=2.5, epsilon=2.0, delta=1e-5, n_units=40)
    evaluations = [
        assignment(evaluate, source=source(path), release=plan, model=MODEL, **common)
        for path in paths
    ]
    return {"fit": (fits[0], fits[1]), "evaluate": (evaluations[0], evaluations[1])}


_COMMITMENT = re.compile(rb'"dataset_commitment": "[^"]*"')  # its salt is random


@dataclass
class Left:
    """All that somebody who may not see rows can be shown, but for what is random."""

    gateway: FakeGateway
    ticks: dict[str, int]

    @property
    def seen(self) -> dict[str, Any]:
        gateway = self.gateway
        return {
            "events": gateway.events,
            "charges": [(each.first_step, each.steps) for each in gateway.charges.values()],
            "outcomes": gateway.outcomes,
            "incidents": len(gateway.incidents),
            "ticks": self.ticks,
            "names": sorted(gateway.files),
            "report": _COMMITMENT.sub(b"", gateway.files.get("privacy_report.json", b"")),
        }

    @property
    def figures(self) -> dict[str, Any]:
        """What depends on rows and noise."""
        files = self.gateway.files
        found = {name: files[name] for name in ("evaluation.json",) if name in files}
        if "adapter_model.safetensors" in files:
            weights = load_tensors(files["adapter_model.safetensors"])
            return {name: value.tolist() for name, value in weights.items()}
        return found


def run(
    job: Assignment,
    root: Path,
    patch: pytest.MonkeyPatch,
    model: dict[str, bytes] | None = None,
) -> Left:
    """A job, with streams of known keys: what is released depends on rows and nothing else."""
    if model:
        job = job.model_copy(update={"files": tuple(model)})
    gateway, watch, ticks = FakeGateway(job, models={MODEL: model or {}}), Watch(), {}
    began_s = watch()

    def noted(method: str, what: str) -> None:
        if what in ("charges", "incidents", "outcome"):
            ticks.setdefault(what, round((watch() - began_s) / BUCKET_S))

    gateway.before = noted
    keys = itertools.count()
    patch.setattr(
        SecureStream, "fresh", classmethod(lambda cls: cls(next(keys).to_bytes(32, "big")))
    )
    # A beat sends the events so far: whether one comes is a matter of this machine's load.
    patch.setattr(heartbeat, "_SLOWEST_S", 3600.0)
    patch.setattr(
        worker_job, "TimingPadding", lambda bucket: TimingPadding(bucket, watch, watch.sleep)
    )
    Runner(root).run(gateway.client())
    return Left(gateway, ticks)


@pytest.fixture(scope="module")
def without(
    jobs: dict[str, tuple[Assignment, Assignment]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Left]:
    """What leaves without the row."""
    root = tmp_path_factory.mktemp("without")
    with pytest.MonkeyPatch.context() as patch:
        fitted = run(jobs["fit"][1], root / "fit", patch)
        judged = run(jobs["evaluate"][1], root / "evaluate", patch, fitted.gateway.files)
    assert fitted.gateway.outcome.succeeded, fitted.gateway.incidents
    assert judged.gateway.outcome.succeeded, judged.gateway.incidents
    return {"fit": fitted, "evaluate": judged}


def check(
    kind: str,
    arrange: Callable[[pytest.MonkeyPatch], None],
    jobs: dict[str, tuple[Assignment, Assignment]],
    without: dict[str, Left],
    root: Path,
    patch: pytest.MonkeyPatch,
) -> None:
    """Nothing that leaves tells whether the row, to which something happens, is there."""
    arrange(patch)
    model = without["fit"].gateway.files if kind == "evaluate" else None
    found, expected = run(jobs[kind][0], root, patch, model), without[kind]
    assert found.seen == expected.seen, found.gateway.incidents
    if kind == "evaluate":
        assert found.figures == expected.figures
    else:
        assert found.figures.keys() == expected.figures.keys()
        for name, values in found.figures.items():
            assert np.allclose(values, expected.figures[name], rtol=1e-5, atol=1e-7), name


_QUICK = [
    *(("fit", stage, "Panic") for stage in STAGES),
    *(("evaluate", stage, "MemoryError") for stage in ("select", "tokenizer")),
]
_SLOW = [
    pytest.param(kind, stage, error, marks=pytest.mark.slow)
    for error in FEW
    for stage in STAGES
    for kind in ("fit", "evaluate")
]


@pytest.mark.parametrize(("kind", "stage", "error"), [*_QUICK, *_SLOW])
def test_a_row_that_raises_anything_leaves_no_trace(
    kind: str,
    stage: str,
    error: str,
    jobs: dict[str, tuple[Assignment, Assignment]],
    without: dict[str, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrange = partial(STAGES[stage], act=_raises(error))
    check(kind, arrange, jobs, without, tmp_path, monkeypatch)


def _hangs() -> None:
    while True:
        sum(range(1000))


def _does_not_listen() -> None:
    time.sleep(30)


@pytest.mark.parametrize(
    ("kind", "act"), [("fit", _hangs), ("fit", _does_not_listen), ("evaluate", _does_not_listen)]
)
def test_a_row_that_the_tokenizer_does_not_come_back_from_leaves_no_trace(
    kind: str,
    act: Callable[[], None],
    jobs: dict[str, tuple[Assignment, Assignment]],
    without: dict[str, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Skipped, "within", classmethod(lambda cls, *_: cls(row_limit_s=1.0)))
    check(kind, partial(_tokenizer, act=act), jobs, without, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "line", [b'{"id": "p3_1", "text": ', b'{"id": "p3_1", "text": "\xff"}', b"[" * 100_000]
)
def test_a_line_that_cannot_be_read_leaves_no_trace(
    line: bytes,
    jobs: dict[str, tuple[Assignment, Assignment]],
    without: dict[str, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = jobs["fit"][1]
    assert job.source is not None
    path = tmp_path / "notes.jsonl"
    path.write_bytes(Path(job.source.source).read_bytes() + line + b"\n")
    jobs = {"fit": (job.model_copy(update={"source": source(path)}), job)}
    check("fit", lambda patch: None, jobs, without, tmp_path / "root", monkeypatch)


@pytest.mark.parametrize(
    "select",
    [
        "CASE WHEN contains(text, 'TELLTALE') THEN CAST(text AS INTEGER) END AS n, id, text",
        f"CASE WHEN contains(text, 'TELLTALE') THEN replace(replace(replace(text, 'a', "
        f"'{'b' * 2000}'), 'b', '{'c' * 2000}'), 'c', '{'d' * 2000}') ELSE text END AS text",
        "CASE WHEN contains(text, 'TELLTALE') THEN '' ELSE text END AS text",
    ],
    ids=["fails", "grows", "is blank"],
)
def test_a_selection_cannot_ask_for_a_row(
    select: str,
    jobs: dict[str, tuple[Assignment, Assignment]],
    without: dict[str, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = jobs["fit"][0]
    data = job.request.data.model_copy(update={"select": select})
    asked = job.request.model_copy(update={"data": data})
    jobs = {"fit": (job.model_copy(update={"request": asked}), jobs["fit"][1])}
    check("fit", lambda patch: None, jobs, without, tmp_path, monkeypatch)


def test_rows_that_take_too_long_end_the_job_at_a_public_time(
    jobs: dict[str, tuple[Assignment, Assignment]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, as a `select` of 300 characters can have it: one alone is left out instead."""
    letters = f"string_split(concat(text, '{'a' * 3000}'), '')"
    endless = "1"
    for name in "zyx":
        endless = f"len(list_filter({letters}, lambda {name}: {name} = 'b' OR {endless} > 1))"
    job = jobs["fit"][0]
    data = job.request.data.model_copy(update={"select": f"CAST({endless} AS VARCHAR) AS text"})
    asked = job.request.model_copy(update={"data": data})
    left = run(
        job.model_copy(update={"request": asked, "preparation_s": 2.0}), tmp_path, monkeypatch
    )
    assert not left.gateway.outcome.succeeded
    assert left.gateway.outcome.code is FailureCode.TIME
    assert left.ticks["outcome"] == 1
    assert not left.gateway.charges
    assert not left.gateway.files


def test_mutant_that_lets_a_class_through_is_found(
    jobs: dict[str, tuple[Assignment, Assignment]],
    without: dict[str, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_class(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ValueError:
            return None

    monkeypatch.setattr(encoding, "attempted", by_class)
    arrange = partial(STAGES["tokenizer"], act=_raises("ModelError"))
    with pytest.raises(AssertionError):
        check("fit", arrange, jobs, without, tmp_path, monkeypatch)


class _Counting(Egress):
    """A mutant: it says how many rows were skipped."""

    def plan(self, plan: TrainingPlan) -> None:
        (path,) = self.printed.parent.rglob(SKIPPED)  # type: ignore[union-attr]
        super().plan(plan)
        self.count(json.loads(path.read_text())["rows"], 100)


class _CountingInAReport(Egress):
    """A mutant: so does a released report, where nobody would look for it."""

    def file(self, path: Path) -> None:
        if path.name == "privacy_report.json":
            (skipped,) = self.printed.parent.rglob(SKIPPED)  # type: ignore[union-attr]
            report = json.loads(path.read_text())
            report["n_units"] -= json.loads(skipped.read_text())["rows"]
            path.write_text(json.dumps(report))
        super().file(path)


@pytest.mark.parametrize("egress", [_Counting, _CountingInAReport])
def test_mutant_that_counts_skipped_rows_is_found(
    egress: type[Egress],
    jobs: dict[str, tuple[Assignment, Assignment]],
    without: dict[str, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_job, "Egress", egress)
    job = jobs["fit"][1]
    honest = run(job, tmp_path / "without", monkeypatch)
    arrange = partial(STAGES["select"], act=_raises("Panic"))
    with pytest.raises(AssertionError):
        check("fit", arrange, jobs, {"fit": honest}, tmp_path / "with", monkeypatch)


# All kinds of exceptions, where one row costs microseconds.


@pytest.fixture(scope="module")
def tokenizer(tiny_medical: Path) -> Any:
    found = AutoTokenizer.from_pretrained(tiny_medical)
    found.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    return found


@pytest.mark.parametrize("where", ["__call__", "apply_chat_template"])
def test_a_row_that_raises_anything_is_skipped_and_no_other(where: str, tokenizer: Any) -> None:
    def chat(text: str) -> str:
        roles = (("user", text), ("assistant", "Rest."))
        return json.dumps([{"role": role, "content": words} for role, words in roles])

    texts = [chat(f"note {n}" if n != 5 else TELLTALE) for n in range(9)]
    batch = pa.record_batch([pa.array(texts, pa.large_string())], ["part_0"])
    real = getattr(type(tokenizer), where)
    now = [""]

    class Failing(type(tokenizer)):  # type: ignore[misc]
        pass

    def failing(self: Any, text: Any, **options: Any) -> Any:
        if TELLTALE in str(text):
            _raises(now[0])()
        return real(self, text, **options)

    setattr(Failing, where, failing)
    changed = copy.copy(tokenizer)
    changed.__class__ = Failing
    encoder = DeclaredEncoder(Fields("messages", ("m",)), changed, 32, 6144, Skipped())
    for number, kind in enumerate(KINDS):
        now[0] = kind
        lengths = [n for part in encoder.encode(batch) for n in part.lengths]
        assert [length > 1 for length in lengths] == [n != 5 for n in range(9)], kind
        assert encoder.skipped.rows == number + 1, kind


def test_rows_that_raise_anything_are_left_out_and_no_other() -> None:
    """As unit, side, selection and text are found: what is raised is never looked at."""
    batch = pa.RecordBatch.from_pydict({"kind": ["", *KINDS, ""]})

    def attempt(part: pa.RecordBatch) -> pa.RecordBatch:
        for kind in filter(None, part.column("kind").to_pylist()):
            _raises(kind)()
        return part

    skipped = Skipped()
    kept = [row for part in surviving(batch, attempt, skipped) for row in part.to_pylist()]
    assert kept == [{"kind": ""}] * 2
    assert skipped.rows == len(KINDS)


@pytest.mark.parametrize("kind", STOPS)
def test_what_ends_the_process_is_nobodys_row(kind: type[BaseException]) -> None:
    def stop() -> None:
        raise kind

    with pytest.raises(kind):
        attempted(stop)
