"""Jobs of 1, 2 and 3 processes over gloo: the gradient, report and files of one process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from support.ranks import in_processes, results
from taciturn.certificate.clock import now
from taciturn.certificate.commitment import open_commitment
from taciturn.certificate.keygen import write_key
from taciturn.certificate.keys import read_trust
from taciturn.certificate.verify import Folders, verify_file
from taciturn.cli.main import main
from taciturn.data.tokens.planted import Planted
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.model import sharding
from taciturn.engine.model.load import load_base
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import PrivateGradient
from taciturn.engine.training import step as step_module
from taciturn.engine.training.batch import BatchLimits
from taciturn.engine.training.processes import all_processes
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import Streams, private_step
from taciturn.engine.training.trainable import trainable
from taciturn.errors import ModelError, SpecError, TaciturnError
from taciturn.llm import LLM
from taciturn.local.estimate import public_facts
from taciturn.local.fit import Observer
from taciturn.planning.optimizer import OptimizerConfig
from taciturn.planning.plan import adapter_plan
from taciturn.reports.privacy import REPORT
from taciturn.spec import FitSpec

CPU = torch.device("cpu")
N_UNITS = 24
# Notes of different lengths, so that microbatches and ranks have different shares.
ROWS = [f"Note {i}: " + "the patient has a cough. " * (1 + i % 5) for i in range(N_UNITS)]
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "batch_size": 8,
    "steps": 4,
    "microbatch_tokens": 128,
    "checkpoint_every": 2,
}
PRIVATE = {**SETTINGS, "target_epsilon": 4}
ORDINARY = {**SETTINGS, "target_epsilon": "unlimited"}
KINDS: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "full"},
    {"method": "lora", "sharding": "full"},
    {"method": "full", "sharding": "full"},
    {"method": "full", "sharding": "full", "gradient_checkpointing": True},
]
# Sums of factors are clipped 1e-4 shorter, and what is kept as factors may depend on a rank's
# share: here it does not.
KINDS_AND_FORMS = [(kind, form) for kind in KINDS for form in (Form.INSTANTIATE, Form.FACTORS)]
# Expected units per step. Of 1, most ranks have none, and often all of them.
BATCHES = (1, 8)
SILENT, CLIP = 1e-9, 0.1


class Noting(TrainingState):
    """Keeps what a step releases, whole, and leaves the weights as they are."""

    ranks: Ranks
    released: list[list[NDArray[np.float32]]]

    def apply(self, private: PrivateGradient) -> None:
        shapes = {name: value.shape for name, value in self.parameters.items()}
        values = dict(private.values)
        if sharding.is_sharded(torch.nn.ParameterList(self.parameters.values())):
            values = self.ranks.whole(values, shapes)
        self.released.append([value.numpy() for value in values.values()])


def released(
    model: str, data: str, kind: dict[str, Any], form: Form, size: int
) -> tuple[list[list[NDArray[np.float32]]], int, int]:
    """What three steps of each batch size release, and the bytes of weights and optimiser here."""
    with all_processes(CPU) as ranks:
        own_kind = kind if size > 1 else {**kind, "sharding": "none"}
        spec = FitSpec(**PRIVATE, **own_kind)
        base = load_base(model, spec)
        choice = adapter_plan(spec, public_facts(base, 1))
        _, loss = trainable(base, spec, choice, ranks)
        parameters = {n: p for n, p in loss.named_parameters() if p.requires_grad}
        state = Noting(parameters, OptimizerConfig(0.1, 9), private=True)
        state.ranks, state.released = ranks, []
        streams = Streams(SecureStream(bytes(32)), SecureStream.fresh())
        dataset = TokenizedDataset.open(Path(data))
        for batch in BATCHES:
            mechanism = DpSgdMechanism(N_UNITS, batch, 3, SILENT, CLIP, tuple(parameters))
            limits = BatchLimits(128, 8, 160)
            for _ in range(3):
                private_step(loss, dataset, mechanism, state, streams, limits, form, ranks)
        moments = sum(value.numel() * 4 for value in state.tensors().values())
        return state.released, sharding.own_bytes(loss), moments


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> str:
    folder = tmp_path_factory.mktemp("tokens") / "data"
    spec = FitSpec()
    prepare(ROWS, spec, load_base(str(tiny_llama), spec).tokenizer, 160, folder, 0)
    return str(folder)


def all_released(model: str, data: str, size: int) -> list[Any]:
    """One process that goes through all kinds."""
    return [released(model, data, kind, form, size) for kind, form in KINDS_AND_FORMS]


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, data: str) -> list[Any]:
    return all_released(str(tiny_llama), data, 1)


@pytest.mark.parametrize("size", [2, 3])
def test_gradient_of_one_process(size: int, tiny_llama: Path, data: str, alone: list[Any]) -> None:
    """LoRA and full, replicated and sharded, with empty ranks and fewer units than ranks."""
    jobs = results(in_processes(size, all_released, str(tiny_llama), data, size))
    for index, (kind, form) in enumerate(KINDS_AND_FORMS):
        expected, whole_bytes, whole_moments = alone[index]
        of_ranks = [job[index] for job in jobs]
        for steps, _, _ in of_ranks:
            for step, expected_step, first in zip(steps, expected, of_ranks[0][0], strict=True):
                _close(step, expected_step, f"{kind}, {form}")
                # Bit for bit the same on every rank, or their weights would part.
                assert all(np.array_equal(a, b) for a, b in zip(step, first, strict=True))
        if "sharding" in kind:
            _check_bytes([own for _, own, _ in of_ranks], whole_bytes, kind)
        if kind == KINDS[3]:
            assert sum(own for _, _, own in of_ranks) <= 1.01 * whole_moments


def _close(step: list[Any], expected: list[Any], kind: str) -> None:
    mine, wanted = (np.concatenate([each.ravel() for each in side]) for side in (step, expected))
    error = np.linalg.norm(mine - wanted)
    assert error <= 1e-5 * np.linalg.norm(wanted) + 1e-6 * CLIP, f"{kind}: off by {error}"


def _check_bytes(own: list[int], whole: int, kind: dict[str, Any]) -> None:
    """Weights are spread; only adapters, a few of all bytes, are whole on every rank."""
    adapters = 0 if kind["method"] == "full" else 60_000
    for each in own:
        assert each <= whole / len(own) + adapters + 2_000, f"{kind}: {own} of {whole}"


def fit(model: str, output: str, settings: dict[str, Any], resume: bool = False) -> Any:
    fitted = LLM(model).fit(ROWS, output=output, resume=resume, **settings)
    assert fitted.privacy is not None
    assert not torch.distributed.is_initialized()
    return fitted.privacy.model_dump(), fitted.log_probability("The patient", " has a cough")


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in (folder / "private/journal.jsonl").open()]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (KINDS[0], 2),
        (KINDS[3], 3),
        pytest.param(KINDS[0], 3, marks=pytest.mark.slow),
        pytest.param(KINDS[2], 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_report_and_files_of_one_process(
    kind: dict[str, Any], size: int, tiny_llama: Path, tmp_path: Path
) -> None:
    settings, output = {**PRIVATE, **kind}, tmp_path / "out"
    expected, _ = fit(str(tiny_llama), str(tmp_path / "1"), {**settings, "sharding": "none"})
    ended = results(in_processes(size, fit, str(tiny_llama), str(output), settings))
    reports = [report for report, _ in ended]
    assert reports == [reports[0]] * size
    # Each job commits to its data with a salt of its own.
    (step,) = reports[0]["private_steps"]
    assert step["dataset_commitment"] == open_commitment(output / "private")
    assert _without_commitments(reports[0]) == _without_commitments(expected)
    # Every process has the same model at the end.
    assert len({likelihood for _, likelihood in ended}) == 1
    assert _files(output) == _files(tmp_path / "1")
    start, *steps = journal(output)
    noise = [start["noise_stream"], *start["noise_streams_of_others"]]
    assert len({*noise, start["sampling_stream"]}) == size + 1
    assert [each["step"] for each in steps] == [1, 2, 3, 4]
    assert len((output / "private/metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_public_text_is_learned_from_in_step(
    kind: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """What the first process has measured decides for all."""
    text = [f"Case {i}: a fever." for i in range(24)]
    settings = {**PRIVATE, **kind, "steps": 2, "public_data": text}
    ended = results(in_processes(2, fit, str(tiny_llama), str(tmp_path / "out"), settings))
    assert ended[0] == ended[1]
    assert [each["records"] for each in ended[0][0]["public_data"]] == [24]


def fit_pairs(model: str, output: str) -> Any:
    """Fit to pairs of answers, with canaries; the report and a figure of the model at the end."""
    rows = [
        {"prompt": f"Note {i}: a cough.", "chosen": " Rest." * (1 + i % 4), "rejected": " Go."}
        for i in range(N_UNITS)
    ]
    settings = {**PRIVATE, "steps": 2, "method": "lora", "max_tokens": 32, "canaries": 8}
    fitted = LLM(model).fit(rows, output=output, objective="dpo", **settings)
    assert fitted.privacy is not None
    return fitted.privacy.model_dump(), fitted.log_probability("Note 1", " Rest.")


def test_preferences_of_several_processes(tiny_llama: Path, tmp_path: Path) -> None:
    """The reference is the base with its adapters off, in each process."""
    expected, _ = fit_pairs(str(tiny_llama), str(tmp_path / "1"))
    ended = results(in_processes(2, fit_pairs, str(tiny_llama), str(tmp_path / "out")))
    assert ended[0] == ended[1]
    reports = [{**_without_commitments(one), "canaries": None} for one in (ended[0][0], expected)]
    assert reports[0] == reports[1]
    assert reports[0]["n_units"] == N_UNITS + 8
    assert _files(tmp_path / "out") == _files(tmp_path / "1")
    assert LLM(str(tmp_path / "out")).audit(confidence=0.5).canaries == 8


def _without_commitments(report: dict[str, Any]) -> dict[str, Any]:
    steps = [{**step, "dataset_commitment": None} for step in report["private_steps"]]
    return {**report, "private_steps": steps}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "size"),
    [(KINDS[0], 3), (KINDS[3], 2), pytest.param(KINDS[2], 3, marks=pytest.mark.slow)],
    ids=str,
)
def test_ordinary_training_of_one_process(
    kind: dict[str, Any], size: int, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = {**ORDINARY, **kind, "batch_size": 7, "learning_rate": 1e-3}
    fit(str(tiny_llama), str(tmp_path / "1"), {**settings, "sharding": "none"})
    results(in_processes(size, fit, str(tiny_llama), str(tmp_path / "out"), settings))
    expected = _weights(tmp_path / "1")
    assert _weights(tmp_path / "out").keys() == expected.keys()
    for name, value in _weights(tmp_path / "out").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5)


def _weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def interrupted_fit(model: str, output: str, settings: dict[str, Any]) -> int:
    """One rank gets Ctrl-C after its second step; all stop after the same step."""

    def stop_at_two(progress: Any) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        observer = Observer(on_progress=stop_at_two)
        LLM(model).fit(ROWS, output=output, observer=observer, **settings)
    except KeyboardInterrupt as stopped:
        return int(getattr(stopped, "step", -1))
    return 0


@pytest.mark.parametrize(
    "kind", [KINDS[0], pytest.param(KINDS[3], marks=pytest.mark.slow)], ids=str
)
def test_stop_and_resume_in_step(kind: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    settings = {**PRIVATE, **kind, "steps": 6}
    output = str(tmp_path / "out")
    stopped = results(in_processes(2, interrupted_fit, str(tiny_llama), output, settings))
    assert stopped[0] in (2, 3)
    assert len(set(stopped)) == 1
    # A checkpoint does not know how many processes wrote it.
    ended = results(in_processes(3, fit, str(tiny_llama), output, settings, True))
    assert len({likelihood for _, likelihood in ended}) == 1
    entries = journal(tmp_path / "out")
    assert [each["step"] for each in entries if "step" in each] == [1, 2, 3, 4, 5, 6]
    streams = [each[name] for each in entries for name in each if name.endswith("_stream")]
    assert len(streams) == len(set(streams)) == 4


def fit_missing_column(model: str, output: str) -> None:
    fields: dict[str, Any] = {**PRIVATE, "text_field": "absent", "method": "lora"}
    LLM(model).fit(pd.DataFrame({"text": ROWS}), output=output, **fields)


def test_bad_data_ends_every_process(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first, second = in_processes(2, fit_missing_column, str(tiny_llama), str(output))
    assert (first.code, second.code) == (1, 1)
    assert "MissingColumnError" in first.error
    assert "ProcessError: process 0 of 2 failed: MissingColumnError" in second.error
    assert not output.exists()


def fit_with_failing_rank(model: str, output: str, kind: dict[str, Any]) -> None:
    """Rank 1 fails in its second microbatch, as it does when memory is short."""
    calls = 0
    original = step_module.sum_parts

    def failing(loss: Any, parts: Any, form: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and os.environ["RANK"] == "1":
            raise MemoryError("a row: François Dupont")
        return original(loss, parts, form)

    step_module.sum_parts = failing
    LLM(model).fit(ROWS, output=output, **{**PRIVATE, **kind, "batch_size": 24})


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=str)
def test_failing_process_ends_every_process(
    kind: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    start = time.monotonic()
    ended = in_processes(3, fit_with_failing_rank, str(tiny_llama), str(tmp_path / "out"), kind)
    assert time.monotonic() - start < 60
    assert [each.code for each in ended] == [1, 1, 1]
    assert "MemoryError" in ended[1].error
    for other in (ended[0], ended[2]):
        assert "ProcessError: " in other.error
        assert "François" not in other.error


def test_killed_process_ends_every_process(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def kill_one(processes: list[Any]) -> None:
        path = output / "private" / "journal.jsonl"
        while processes[0].is_alive() and not (path.exists() and '"step"' in path.read_text()):
            time.sleep(0.01)
        processes[1].kill()

    settings = {**PRIVATE, "steps": 400, "method": "lora"}
    ended = in_processes(2, fit, str(tiny_llama), str(output), settings, meanwhile=kill_one)
    assert ended[1].code == -signal.SIGKILL
    assert ended[0].code == 1
    assert "ProcessError: the connection to another process of this job broke" in ended[0].error


def fit_with_own_seed(model: str, output: str) -> None:
    LLM(model).fit(ROWS, output=output, seed=int(os.environ["RANK"]), **PRIVATE)


def test_different_settings_end_every_process(tiny_llama: Path, tmp_path: Path) -> None:
    ended = in_processes(2, fit_with_own_seed, str(tiny_llama), str(tmp_path / "out"))
    assert all("SpecError: the 2 processes" in each.error for each in ended)


def fit_twice_and_save(model: str, output: str) -> bool:
    """Without an output folder, twice in one script; the second run connects anew."""
    for _ in range(2):
        fitted = LLM(model).fit(ROWS, **{**PRIVATE, "steps": 1, "method": "lora"})
    return fitted.save(output) == Path(output)


def test_two_fits_in_one_script(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert results(in_processes(2, fit_twice_and_save, str(tiny_llama), str(output))) == [True] * 2
    assert (output / "privacy_report.json").is_file()


def command(*arguments: str) -> str:
    """`taciturn ...` in this process; what it printed."""
    sys.argv = ["taciturn", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    return out.getvalue()


def test_command_line_speaks_once(tiny_llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": row}) for row in ROWS))
    flags = ["--model", str(tiny_llama), "--data", str(rows), "--output", str(tmp_path / "out")]
    flags += ["--target-epsilon", "4", "--batch-size", "8", "--steps", "2", "--device", "cpu"]
    flags += ["--method", "lora"]
    first, second = results(in_processes(2, command, "fit", *flags))
    assert "fitted model" in first
    assert second == ""
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_sharding_needs_several_processes(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(SpecError, match="torchrun"):
        LLM(str(tiny_llama)).fit(ROWS, output=output, sharding="full", **PRIVATE)
    assert not output.exists()
    with pytest.raises(SpecError, match="output="):
        LLM(str(tiny_llama)).fit(ROWS, sharding="full", **PRIVATE)


def test_quantised_base_is_not_sharded() -> None:
    base = torch.nn.Linear(2, 2)
    base.is_quantized = True  # type: ignore[assignment]
    with pytest.raises(ModelError, match="quantised"):
        sharding.check_can_shard(base, 2)
    sharding.check_can_shard(torch.nn.Linear(2, 2), 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_torchrun(sharding: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The command that the README shows, and the same without torchrun."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": row}) for row in ROWS))
    flags = ["--model", str(tiny_llama), "--data", str(rows), "--target-epsilon", "4"]
    flags += ["--batch-size", "8", "--steps", "2", "--device", "cpu", "--method", "full"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for name, start, own in (("1", [], []), ("2", torchrun, ["--sharding", sharding])):
        output = ["--output", str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, *start, "-m", "taciturn", "fit", *flags, *own, *output],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("fitted model") == 1
    reports = [json.loads((tmp_path / name / REPORT).read_text()) for name in ("1", "2")]
    assert _without_commitments(reports[0]) == _without_commitments(reports[1])


def certified_fit(
    model: str, output: str, settings: dict[str, Any], key: str, spend_on: str | None
) -> tuple[dict[str, Any], str]:
    """A signed fit by processes of which only the first has a key, and what an evaluation says."""
    first = os.environ["RANK"] == "0"
    if first:
        os.environ["TACITURN_SIGNING_KEY"] = key
    fitted = LLM(model).fit(ROWS, output=output, **settings)
    assert fitted.privacy is not None
    said = ""
    if not first and spend_on is not None:
        for refused in (
            lambda: fitted.evaluate(ROWS, target_epsilon=1.0),
            lambda: fitted.certificate(),
        ):
            with pytest.raises(TaciturnError) as error:
                refused()
            said += str(error.value)
    return fitted.privacy.model_dump(), said


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=str)
def test_one_certificate_of_several_processes(
    kind: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """Rank 0 commits to the data, releases and signs; a further fit states what both cost."""
    key = write_key(tmp_path / "k", name="me", valid_from=now(), days=2, password=None)
    first, second = tmp_path / "first", tmp_path / "second"
    settings = {**PRIVATE, **kind, "steps": 2}
    arguments = (str(first), settings, str(key.private), "private")
    ended = results(in_processes(2, certified_fit, str(tiny_llama), *arguments))
    assert ended[1][1].count("RANK is 0") == 2
    arguments = (str(second), settings, str(key.private), None)
    further = results(in_processes(2, certified_fit, str(first), *arguments))
    for folder, reports, fits in ((first, ended, 1), (second, further, 2)):
        assert reports[0][0] == reports[1][0]
        assert len(reports[0][0]["private_steps"]) == fits
        found = verify_file(
            folder / "certificate.json",
            read_trust(key.trust),
            Folders(folder, private=folder / "private"),
        )
        assert found.statement.predicate.guarantee.epsilon == reports[0][0]["epsilon"]
    assert further[0][0]["epsilon"] > ended[0][0]["epsilon"]


def audited_fit(model: str, output: str, settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    fitted = LLM(model).fit(ROWS, output=output, **settings)
    assert fitted.privacy is not None
    try:
        said = fitted.audit().verdict
    except TaciturnError as error:
        said = str(error)
    return fitted.privacy.model_dump(), said


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=str)
def test_one_set_of_canaries_for_several_processes(
    kind: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """Rank 0 draws and plants them, every rank reports them, and rank 0 audits."""
    output = tmp_path / "out"
    settings = {**PRIVATE, **kind, "steps": 2, "canaries": 12}
    ended = results(in_processes(2, audited_fit, str(tiny_llama), str(output), settings))
    assert ended[0][0] == ended[1][0]
    assert ended[0][0]["n_units"] == N_UNITS + 12
    planted = Planted.read(output / "private" / "data")
    assert ended[0][0]["canaries"] == {
        "number": 12,
        "kind": "new-token",
        "commitment": planted.commitment,
    }
    assert "12 canaries" in ended[0][1]
    assert "RANK is 0" in ended[1][1]
    assert (output / "audit.json").exists()


def fit_saved_adapter_sharded(folder: str, output: str) -> None:
    LLM(folder).fit(ROWS, output=output, **PRIVATE, sharding="full")


def test_saved_adapter_is_not_sharded(tiny_llama: Path, tmp_path: Path) -> None:
    saved, output = tmp_path / "saved", tmp_path / "out"
    LLM(str(tiny_llama)).fit(ROWS, output=saved, method="lora", **PRIVATE)
    ended = in_processes(2, fit_saved_adapter_sharded, str(saved), str(output))
    assert all("SpecError: sharding='full' spreads a model before" in each.error for each in ended)
    assert not output.exists()
