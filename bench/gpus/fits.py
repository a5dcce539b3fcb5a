"""Whole fits on the device: what they promise, what a kill leaves, and several processes' path.

Some run in processes of their own while other checks use the device, too: they take their time in
importing and loading.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpus.items import Item, Outcome, SkippedError, said, trace_of
from gpus.models import Place, as_product, small_loss, vocabulary_of

MODEL = "taciturn/tiny-medical"
_BENCH = Path(__file__).resolve().parents[1]
_TIMEOUT_S = 150
_STEPS = 8
_ANSWER = "answer: "
_PROCESSES: list[subprocess.Popen[str]] = []
"""All that were started here; whoever ends early ends them."""


def rows(count: int) -> list[str]:
    """Invented notes."""
    return [
        f"Note {number}: the patient has a cough for {number % 9} days." for number in range(count)
    ]


class Background:
    """Work of other processes, started early and asked for late; one after another."""

    def __init__(self, works: dict[str, Callable[[], Outcome]]) -> None:
        self._results: dict[str, Outcome | BaseException] = {}
        self._works, self._processes = works, _PROCESSES
        self._ready = {name: threading.Event() for name in works}
        self._threads = [
            threading.Thread(target=self._run, args=(name,), daemon=True) for name in works
        ]

    def stop(self) -> None:
        """End what is still there."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()

    def start(self) -> None:
        """Begin; all at once, for they mostly import."""
        for thread in self._threads:
            thread.start()

    def _run(self, name: str) -> None:
        try:
            self._results[name] = self._works[name]()
        except BaseException as error:
            self._results[name] = error
        finally:
            self._ready[name].set()

    def outcome(self, name: str) -> Outcome:
        """Wait for one of them; raises what it raised."""
        if not self._ready[name].wait(2 * _TIMEOUT_S):
            raise TimeoutError(f"no answer within {2 * _TIMEOUT_S} s")
        result = self._results[name]
        if isinstance(result, BaseException):
            raise result
        return result


def items(place: Place, folder: Path) -> tuple[list[Item], dict[str, Callable[[], Outcome]]]:
    """Checks of this module, and what of them runs in the background, by name."""
    apart: dict[str, Callable[[], Outcome]] = {
        "killed and resumed": partial(_killed, place, folder / "killed"),
        "nccl, one process": partial(_child, "group", place),
        "FSDP2, one process": partial(_child, "shards", place),
    }
    return [Item("whole fit", 20, partial(_whole, place, folder / "whole"))], apart


def _whole(place: Place, output: Path) -> Outcome:
    """A fit of the embedded model on the device keeps the promises that the CPU planned."""
    from taciturn.llm import LLM

    data, fields = rows(64), {"target_epsilon": 4.0, "batch_size": 16, "steps": 3}
    expected = LLM(MODEL, device="cpu").plan(data, **fields)  # type: ignore[arg-type]
    assert expected.privacy is not None
    start = time.monotonic()
    extra: dict[str, Any] = {"method": "lora"} if place.tiny else {}
    fitted = LLM(MODEL).fit(data, output=str(output), device=place.device, **fields, **extra)  # type: ignore[call-overload]
    seconds = time.monotonic() - start
    report = fitted.privacy
    assert report is not None
    same = {
        "steps": report.steps == expected.steps == 3,
        "noise multiplier": report.noise_multiplier == expected.privacy.noise_multiplier,
        "epsilon": math.isclose(report.epsilon, expected.privacy.epsilon, rel_tol=1e-3),
        "epsilon at most 4": report.epsilon <= 4.0,
        "clip norm": report.l2_clip_norm == expected.privacy.l2_clip_norm,
    }
    text = str(fitted.sample(["The patient"], max_new_tokens=8).iloc[0]["text"])
    same["sample"] = bool(text)
    bad = [name for name, good in same.items() if not good]
    told = f"epsilon {report.epsilon:.4f}, {report.steps} steps, {seconds:.0f} s"
    told += f"; differ: {', '.join(bad)}" if bad else ""
    return Outcome(
        not bad,
        told,
        {
            "same": same,
            "epsilon": [report.epsilon, expected.privacy.epsilon],
            "noise_multiplier": [report.noise_multiplier, expected.privacy.noise_multiplier],
            "seconds": seconds,
        },
    )


def _environment() -> dict[str, str]:
    import taciturn

    source = str(Path(str(taciturn.__file__)).parents[1])
    paths = [source, str(_BENCH), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _killed(place: Place, folder: Path) -> Outcome:
    """kill -9 of `taciturn fit` after a checkpoint; `--resume` ends with what was planned."""
    folder.mkdir(parents=True, exist_ok=True)
    data, output = folder / "rows.jsonl", folder / "out"
    data.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows(64)), encoding="utf-8")
    command = [sys.executable, "-m", "taciturn", "fit", "--model", MODEL, "--data", str(data)]
    command += ["--output", str(output), "--target-epsilon", "4", "--batch-size", "16"]
    command += ["--steps", str(_STEPS), "--checkpoint-every", "2", "--method", "lora"]
    command += ["--device", place.device]
    journal = output / "private" / "journal.jsonl"
    log = folder / "log.txt"
    deadline = time.monotonic() + _TIMEOUT_S
    with log.open("w", encoding="utf-8") as sink:
        process = _started(command, _environment(), sink)
        try:
            while process.poll() is None and _steps_done(journal) < 3:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no third step within {_TIMEOUT_S} s; {_tail(log)}")
                time.sleep(0.002)
            reached = _steps_done(journal)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        finally:
            if process.poll() is None:
                process.kill()
            code = process.wait()
        if code != -signal.SIGKILL:
            if code == 0:
                raise SkippedError("the fit ended before it could be killed")
            raise RuntimeError(f"the fit ended with {code}; {_tail(log)}")
        resumed = _started([*command, "--resume"], _environment(), sink)
        _ended(resumed)
    if resumed.returncode:
        raise RuntimeError(f"the resumed fit ended with {resumed.returncode}; {_tail(log)}")
    report = json.loads((output / "privacy_report.json").read_text(encoding="utf-8"))
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    last = max(entry["step"] for entry in entries if "step" in entry)
    streams = [entry[key] for entry in entries for key in entry if key.endswith("_stream")]
    from taciturn.llm import LLM

    plan = LLM(MODEL, device="cpu").plan(
        rows(64), target_epsilon=4.0, batch_size=16, steps=_STEPS, method="lora"
    )
    assert plan.privacy is not None
    good = (
        report["steps"] == last == _STEPS
        and math.isclose(report["epsilon"], plan.privacy.epsilon, rel_tol=1e-3)
        and report["noise_multiplier"] == plan.privacy.noise_multiplier
        and len(streams) == len(set(streams)) >= 4
    )
    return Outcome(
        good,
        f"killed at step {reached}, ended at {last} with epsilon {report['epsilon']:.4f}",
        {"planned": plan.privacy.epsilon, "epsilon": report["epsilon"], "streams": len(streams)},
    )


def _started(command: list[str], environment: dict[str, str], sink: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, text=True)
    _PROCESSES.append(process)
    return process


def _ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait, for so long; returns what it said, and killed it if it did not end."""
    try:
        out, err = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise TimeoutError(f"it did not end within {_TIMEOUT_S} s") from None
    return out or "", err or ""


def _steps_done(journal: Path) -> int:
    """Steps in the journal, whose first line is no step."""
    try:
        return journal.read_text(encoding="utf-8").count("\n") - 1
    except OSError:
        return -1


def _tail(log: Path) -> str:
    lines = [
        line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return " | ".join([line for line in lines if line][-3:])[-300:]


def _child(kind: str, place: Place) -> Outcome:
    """What a process of its own says of a path that is several processes'."""
    command = [sys.executable, str(_BENCH / "gpu.py"), "--child", kind]
    command += ["--device", place.device, *(["--tiny"] if place.tiny else [])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment = {**_environment(), **meeting, "MASTER_PORT": str(port)}
    done = _started(command, environment, subprocess.PIPE)
    told, complaint = _ended(done)
    answers = [line for line in told.splitlines() if line.startswith(_ANSWER)]
    if not answers:
        last = (complaint.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"ended with {done.returncode}: {last[:200]}")
    return Outcome(**json.loads(answers[-1].removeprefix(_ANSWER)))


def child(kind: str, place: Place) -> None:
    """The other side of `_child`: prints one line."""
    try:
        outcome = {"group": _group, "shards": _shards}[kind](place)
    except Exception as error:
        outcome = Outcome(False, said(error), {"trace": trace_of(error)})
    print(_ANSWER + json.dumps(vars(outcome), default=str), flush=True)
    # A group that was never left well must not keep the process.
    sys.stdout.flush()
    os._exit(0)


def _joined(place: Place) -> Any:
    """A process group of one, as the product makes those of several, and its ranks."""
    import torch.distributed as dist

    from taciturn.engine.privacy.ranks import Ranks

    if place.on_gpu:
        torch.cuda.set_device(0)
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.on_gpu else "gloo")
    control = dist.new_group(backend="gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, control)


def _group(place: Place) -> Outcome:
    """A private step through the process group equals one without, but for noise next to none."""
    import torch.distributed as dist

    from steps.variants import chosen_units, training_state
    from steps.workload import Workload
    from taciturn.engine.privacy import ranks as ranks_module
    from taciturn.engine.privacy.per_example import trainable_parameters
    from taciturn.engine.privacy.ranks import ALONE
    from taciturn.engine.training.batch import BatchLimits
    from taciturn.engine.training.processes import same_weights, tell
    from taciturn.engine.training.step import Streams, private_step

    ranks = _joined(place)
    device = torch.device(place.device)
    # What a job of one process leaves out: collectives on the device and beside it.
    sent = torch.arange(12.0, dtype=torch.float64, device=device)
    received, gathered = torch.empty_like(sent), torch.empty_like(sent)
    ranks_module._reduce_scatter(received, sent, ranks.group)
    ranks_module._all_gather(gathered, sent, ranks.group)
    own = torch.arange(3.0)
    aside = torch.empty(3)
    ranks_module._all_gather(aside, own, ranks.control)
    collectives = all(torch.equal(one, sent) for one in (received, gathered))
    collectives &= torch.equal(aside, own) and tell(ranks, "here") == ["here"]
    loss = small_loss("llama", "lora", torch.float32, place)
    dist.broadcast(next(iter(trainable_parameters(loss).values())).data, src=0, group=ranks.group)
    same_weights(loss.model, ranks)
    vocabulary = vocabulary_of(loss)
    workload = Workload.random([[20, 9, 31, 14, 17, 6, 25, 12]], vocabulary)
    dataset = workload.dataset(1)
    units = workload.units_of(workload.batches[0], 1)
    before = {key: value.detach().clone() for key, value in trainable_parameters(loss).items()}
    ends = []
    for kind in (ALONE, ranks):
        with torch.no_grad():
            for key, value in trainable_parameters(loss).items():
                value.copy_(before[key])
        state = training_state(loss, private=True)
        mechanism = chosen_units([units])(8, 8, 1, 1e-9, 1.0, tuple(state.parameters))
        limits = BatchLimits(512, 8, 32)
        with as_product(place):
            private_step(loss, dataset, mechanism, state, Streams.fresh(), limits, ranks=kind)
        ends.append({key: value.detach().clone() for key, value in state.parameters.items()})
    off = max(float((ends[0][key] - ends[1][key]).abs().max()) for key in ends[0])
    moved = max(float((ends[0][key] - before[key]).abs().max()) for key in before)
    backend = (
        str(dist.get_backend_config(ranks.group)) if hasattr(dist, "get_backend_config") else ""
    )
    good = collectives and moved > 0 and off <= 0.05 * moved
    return Outcome(
        good,
        f"collectives {'agree' if collectives else 'DISAGREE'}, step off by {off / moved:.0e}",
        {"off": off, "moved": moved, "backend": backend},
    )


def _shards(place: Place) -> Outcome:
    """Per-unit gradients of a model whose layers FSDP2 puts together are what they were."""
    from taciturn.engine.model import sharding
    from taciturn.engine.privacy.verification import public_batch

    _joined(place)
    device = torch.device(place.device)
    # One process has nothing to spread, and the product says so; here it is the path that counts.
    sharding.check_can_shard = lambda model, processes: None
    loss = small_loss("llama", "full", torch.float32, place)
    batch = public_batch(vocabulary_of(loss)).to(device)
    before = sharding.gradient_norms(loss, batch)
    sharding.shard(loss.model, device, 1)
    after = sharding.gradient_norms(loss, batch)
    sharding.check_sharded(before, after)
    off = float(((after - before).norm(dim=0) / before.norm(dim=0)).max())
    sharded = sharding.is_sharded(loss.model)
    return Outcome(sharded and off <= 1e-3, f"norms off by {off:.0e}", {"sharded": sharded})
