"""`taciturn doctor`: is everything here that a private fit needs?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from taciturn.cli import ExitCode
from taciturn.cli.gateway import Answer, answering, json_option, no_answer
from taciturn.cli.options import File
from taciturn.errors import ModelError, TaciturnError
from taciturn.spec import JobSpec, load_yaml, parse

_NEEDED = ("torch", "transformers", "peft", "dp-accounting", "pyarrow", "duckdb", "safetensors")
# Sampling probability, noise multiplier, steps and delta: all units in one step, and samples.
_AUDITED = ((1.0, 1.0, 1, 1e-5), (0.1, 0.8, 20, 1e-5))
_OPTIONAL = ("bitsandbytes", "torchao", "polars", "datasets", "gguf")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    what: str
    text: str
    fine: bool


Check = Callable[[], list[Finding]]


def doctor(
    file: File = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="Attack the engine, and compare what is found with its promise."
        ),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a fitted model, at whose settings the engine is attacked."),
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Check the cluster that a gateway runs jobs in.")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option(help="With --kubernetes: the gateway's namespace.")
    ] = None,
    as_json: Annotated[
        bool, json_option("healthy, and findings with what, text, and fine or remedy")
    ] = False,
) -> None:
    """Check installation, device, memory and source of randomness; with -f also that job."""
    with answering(as_json=as_json) as answer:
        if kubernetes:
            from taciturn.cli.doctor_kubernetes import run_doctor_kubernetes

            healthy = run_doctor_kubernetes(namespace, answer=answer)
        else:
            healthy = run_doctor(file, audit=audit, model=model, answer=answer)
    if not healthy:
        raise typer.Exit(ExitCode.REFUSED)


def run_doctor(
    file: Path | None = None,
    *,
    audit: bool = False,
    model: Path | None = None,
    answer: Answer = no_answer,
) -> bool:
    """Print the findings; True if a private fit can run, and the job in `file` if one is given.

    Args:
        file: YAML of a job, to be examined too.
        audit: attack the engine with gradient canaries.
        model: folder of a fitted model, whose settings the engine is attacked at.
        answer: what prints the findings for programs.
    """
    checks = _CHECKS if file is None else (*_CHECKS, *_job_checks(file))
    if audit or model is not None:
        checks = (*checks, _safely(partial(_engine, model), "engine"))
    findings = [finding for check in checks for finding in check()]
    table = Table("check", "found", "", title="taciturn doctor", title_justify="left")
    for finding in findings:
        table.add_row(finding.what, finding.text, "ok" if finding.fine else "PROBLEM")
    console = Console()
    console.print(table)
    healthy = all(finding.fine for finding in findings)
    answer({"healthy": healthy, "findings": findings})
    console.print("everything is in place" if healthy else "see PROBLEM above", style="bold")
    return healthy


def _python() -> list[Finding]:
    fine = sys.version_info >= (3, 11)
    return [Finding("Python", f"{platform.python_version()} (needs 3.11 or newer)", fine)]


def _packages() -> list[Finding]:
    findings = []
    for name in _NEEDED:
        version = _version(name)
        remedy = "not installed: pip install 'taciturn[engine]'"
        findings.append(Finding(name, version or remedy, version is not None))
    optional = [f"{name} {_version(name)}" for name in _OPTIONAL if _version(name)]
    findings.append(Finding("optional packages", ", ".join(optional) or "none", True))
    return findings


def _device() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        index = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        return [Finding("device", f"{name}, {free >> 30} of {total >> 30} GiB free", True)]
    kind = "mps" if torch.backends.mps.is_available() else "cpu"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors"
    return [Finding("device", f"{kind}, {threads}", True)]


def _memory() -> list[Finding]:
    import torch

    from taciturn.engine.training.memory import available_bytes

    disk = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    findings = [Finding("free temporary disk", f"{disk:.1f} GiB (needs 1)", disk > 1)]
    # What the system keeps files in counts as free: it is given back when it is needed.
    free = available_bytes(torch.device("cpu"))
    if free is None:
        return [Finding("free memory", "unknown (the embedded model needs 1 GiB)", True), *findings]
    text = f"{free / 2**30:.1f} GiB (the embedded model needs 1)"
    return [Finding("free memory", text, free > 2**30), *findings]


def _randomness() -> list[Finding]:
    from taciturn.engine.privacy.rng import SecureStream

    streams = [SecureStream.fresh(), SecureStream.fresh()]
    differ = streams[0].identity != streams[1].identity
    bits = streams[0].integers(1 << 16)
    ones = sum(int(value).bit_count() for value in bits) / (64 * len(bits))
    fine = differ and abs(ones - 0.5) < 0.002
    text = f"operating system entropy, AES-256-CTR; share of ones {ones:.4f}"
    return [Finding("randomness", text, fine)]


def _model() -> list[Finding]:
    from taciturn.embedded import TINY_MEDICAL, model_path

    fine = (model_path() / "model.safetensors").is_file()
    return [Finding("embedded model", TINY_MEDICAL if fine else "missing: install again", fine)]


def _engine(model: Path | None) -> list[Finding]:
    """Attack the engine as the attacker of the privacy proof: does it keep its promise?"""
    import torch

    from taciturn.engine.auditing.claim import DpSgdRun
    from taciturn.engine.auditing.engine_audit import audit_engine
    from taciturn.engine.auditing.gradient_canaries import EngineSettings

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    findings = []
    for q, noise, steps, delta in _AUDITED if model is None else (_settings_of(model),):
        settings = EngineSettings(DpSgdRun(q, noise, steps), device=device)
        audit = audit_engine(settings, delta=delta, canaries=max(10_000, round(20 / q)))
        text = (
            f"promises epsilon {audit.epsilon:.3g} at delta {delta:.0e}; the strongest attack, on "
            f"{audit.guesses.canaries:,} canaries, proves {audit.epsilon_lower_bound:.3g} "
            f"({audit.confidence:.0%} confidence)"
        )
        what = f"engine at q={q:.3g}, noise {noise:.3g}, steps {steps}"
        findings.append(Finding(what, text, not audit.refuted))
    return findings


def _settings_of(model: Path) -> tuple[float, float, int, float]:
    """Sampling probability, noise multiplier, steps and delta of a model's last fit."""
    from taciturn.reports.privacy import REPORT, PrivacyReport

    try:
        report = PrivacyReport.model_validate_json((model / REPORT).read_bytes())
    except (OSError, ValueError):
        raise ModelError(
            f"{model} holds no privacy report that can be read; give a fitted model's folder"
        ) from None
    q, noise, delta = report.sampling_probability, report.noise_multiplier, report.delta
    if q is None or noise is None or delta is None:
        raise ModelError(f"{model} was fitted without privacy; it promises nothing to be audited")
    return q, noise, report.steps, delta


def _job_checks(file: Path) -> tuple[Check, ...]:
    """Return checks of the job in a YAML file: its fields, model, data and output folder."""
    try:
        job = parse(JobSpec, load_yaml(file))
    except TaciturnError as error:
        problem = Finding("job", str(error), False)
        return (lambda: [problem],)

    def model() -> list[Finding]:
        from taciturn.engine.model.load import architecture

        return [Finding("job's model", f"{job.model} ({architecture(job.model)})", True)]

    def data() -> list[Finding]:
        from taciturn.data.tokens.tokenize import check_source

        check_source(job.data, job)
        return [Finding("job's data", f"{job.data}: columns and SQL fit", True)]

    def output() -> list[Finding]:
        folder = Path(job.output).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            remedy = "choose another folder, or --resume an interrupted run in it"
            return [Finding("job's output", f"{folder} is not empty; {remedy}", False)]
        return [Finding("job's output", f"{folder} is free", True)]

    return tuple(map(_safely, (model, data, output)))


def _version(name: str) -> str | None:
    from importlib import metadata  # reads e-mail, which no other command needs

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _safely(check: Check, name: str | None = None) -> Check:
    label = name or check.__name__.strip("_")

    def examined() -> list[Finding]:
        try:
            return check()
        except TaciturnError as error:
            return [Finding(label, str(error), False)]
        except Exception as error:
            return [Finding(label, f"{type(error).__name__}: {error}", False)]

    return examined


_CHECKS = tuple(map(_safely, (_python, _packages, _device, _memory, _randomness, _model)))
