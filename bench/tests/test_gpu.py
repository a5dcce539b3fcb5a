"""The script for GPUs works from end to end, on the CPU and with tiny shapes: it cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu
from gpus import exactness, fits, pack, randomness
from gpus.items import FAIL, PASS, SHOWN, SKIP, Item, Outcome, Run, SkippedError, cases, chosen
from gpus.models import Place
from gpus.speed import CELLS, Speed
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy import chacha, clipping, noise
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.training.loop import STARTED_TOGETHER

PLACE = Place("cpu", tiny=True)
NOT_WRITTEN = "PYTHONDONTWRITEBYTECODE"
SCRIPT = Path(__file__).resolve().parents[1] / "gpu.py"


def run_script(
    folder: Path, *arguments: str, script: Path = SCRIPT
) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was printed, and the file."""
    command = [sys.executable, str(script), "--device", "cpu", "--tiny", "--out", str(folder)]
    # So that what was imported leaves a trace.
    environment = {key: each for key, each in os.environ.items() if key != NOT_WRITTEN}
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert (folder / "gpu.json").exists(), done.stdout + done.stderr
    return done.returncode, done.stdout, json.loads((folder / "gpu.json").read_text("utf-8"))


def verdicts(content: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["verdict"] for item in content["items"]}


def _wheels(wanted: list[str], folder: Path) -> None:
    """Three for this very machine, one of a package that it lacks."""
    assert "dp-accounting==" in "".join(wanted)
    files = {
        "bitsandbytes-0.1": ["__init__.py", *(f"libbitsandbytes_{each}.so" for each in BINARIES)],
        "pydantic-0.1": ["main.py"],
        "lacking_here-0.1": ["__init__.py"],
    }
    for name, members in files.items():
        with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
            for member in members:
                wheel.writestr(f"{name.split('-')[0]}/{member}", "")


BINARIES = ("cpu", "cuda118", "cuda130", "cuda132", "rocm64", "xpu2025")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    packed = pack.pack(folder, _wheels)
    files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert packed.total == files < pack.LIMIT_BYTES
    assert f"{files / 2**20:.1f} of 64 MiB" in str(packed)
    return folder


def test_a_pack_has_the_binaries_of_one_cuda(packed: Path) -> None:
    with zipfile.ZipFile(packed / "wheels" / "bitsandbytes-0.1-py3-none-any.whl") as wheel:
        kept = {Path(name).name for name in wheel.namelist()}
    assert kept == {"__init__.py", "libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"}
    with pytest.raises(SystemExit, match="not empty"):
        pack.pack(packed, _wheels)


def test_a_pack_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(pack.shutil, "copytree", lambda *_, **__: None)

    def large(wanted: list[str], folder: Path) -> None:
        (folder / "large-1-py3-none-any.whl").write_bytes(bytes((1 << 20) + 1))

    with pytest.raises(SystemExit, match=r"too large: .*1\.0 of 1 MiB \(wheels 1\.0"):
        pack.pack(tmp_path / "new", large)


def test_all_packages_have_a_version() -> None:
    constraints = (SCRIPT.parents[1] / "constraints.txt").read_text("utf-8")
    wanted = pack.requirements(constraints)
    assert [each.split("==")[0] for each in wanted] == list(pack.PACKAGES)


def test_checks_and_a_step(packed: Path, tmp_path: Path) -> None:
    """In a packed folder, which has all that it takes."""
    names = ["norms/llama", "chacha20", "noise law", "noise grid", "matrix", "step 1B lora T=512"]
    names.append("starts")
    code, out, content = run_script(
        tmp_path, "--only", *names, "--skip", "opacus", "--minutes", "4", script=packed / "run.py"
    )
    assert sorted(path.name for path in (packed / "packages").iterdir()) == ["lacking_here"]
    assert next((packed / "src").rglob("*.pyc"), None) is not None
    found = verdicts(content)
    assert code == 0, out
    assert {found[name] for name in names[:4]} == {PASS}
    assert found["matrix peak"] == found["step 1B lora T=512"] == SHOWN
    rows = {row["variant"]: row for row in content["summary"]["speed"]}
    assert set(rows) == {"plain", "ordinary", "private", "trainer"}
    assert all(row["tokens_per_second"] > 0 for row in rows.values()), rows
    assert rows["private"]["fixed_seconds"]["noise"] > 0
    goals = {goal["what"]: goal["met"] for goal in content["summary"]["goals"]}
    assert goals["1B LoRA, time of 1,024 units / plain"] is not None
    assert goals["8B LoRA, time of 1,024 units / plain"] is None
    starts = next(item for item in content["items"] if item["name"] == "starts of kernels")
    assert starts["verdict"] == SHOWN, starts
    for kind in ("1B lora", "350M full"):
        assert starts["details"][kind]["start_of_a_layer"] > 0
        assert starts["details"][kind]["started_together_assumed"] == STARTED_TOGETHER
    assert "4 pass, 0 FAIL" in out
    assert (tmp_path / "gpu.md").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it(tmp_path: Path) -> None:
    code, out, content = run_script(tmp_path, "--minutes", "9")
    assert code == 0, out
    assert len(out) < 12_000
    found = verdicts(content)
    # What takes a GPU says so.
    assert {name for name, verdict in found.items() if verdict == SKIP} <= {
        "synchronisation",
        "kernels",
        *(name for name in found if name.startswith("profile")),
    }


def _item(name: str, outcome: Outcome | BaseException, seconds: float = 0.0) -> Item:
    def work() -> Outcome:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return Item(name, seconds, work)


def test_nothing_stops_the_other_items(tmp_path: Path) -> None:
    run = Run(tmp_path / "gpu.json", 1.0, {})
    items = [
        _item("good", Outcome(True, "1")),
        _item("bad", Outcome(False, "2")),
        _item("broken", RuntimeError("CUDA error\nmore")),
        _item("absent", SkippedError("not here")),
        _item("long", Outcome(True, "3"), seconds=1e6),
        _item("shown", Outcome(None, "4")),
    ]
    seen = []
    for item in items:
        run.try_item(item)
        seen.append(len(json.loads((tmp_path / "gpu.json").read_text("utf-8"))["items"]))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert [line.verdict for line in run.lines] == [PASS, FAIL, FAIL, SKIP, SKIP, SHOWN]
    broken = run.lines[2]
    assert broken.figure == "RuntimeError: CUDA error"
    assert broken.trace[-1] == "more"
    assert len(broken.trace) <= 15


def test_a_failed_case_fails_them_all_and_is_said_first() -> None:
    def broken() -> Outcome:
        raise ValueError("no")

    def absent() -> Outcome:
        raise SkippedError("not installed")

    outcome = cases(
        {"one": lambda: Outcome(True, "1"), "two": broken, "three": absent, "four": _shown}
    )
    assert outcome.passed is False
    assert outcome.figure == "FAIL two ValueError: no; one 1; three skipped (not installed); four 4"
    with pytest.raises(SkippedError, match="not installed"):
        cases({"three": absent})


def _shown() -> Outcome:
    return Outcome(None, "4")


def test_all_items_together_take_eight_minutes(tmp_path: Path) -> None:
    """Profiles, which nobody asked for, come last and have what is left."""
    place = Place("cuda", tiny=False)
    whole, apart = fits.items(place, tmp_path)
    items = [*gpu.checks_of(place), *whole, *gpu.measurements(place, Speed())]
    assert len(apart) == 3  # run beside the checks
    asked = [item for item in items if not item.name.startswith("profile")]
    assert sum(item.seconds for item in asked) <= 8 * 60
    assert items[: len(asked)] == asked
    assert {item.name for item in asked} >= {f"step {cell.name}" for cell in CELLS}


def test_items_by_parts_of_names() -> None:
    items = [_item(name, Outcome(True, "")) for name in ("norms/llama", "norms/qwen3", "noise")]
    assert [item.name for item in chosen(items, ["norms"], ["qwen"])] == ["norms/llama"]
    assert len(chosen(items, [], [])) == 3


@pytest.mark.parametrize("scale", [0.97, 1.03])
def test_noise_of_another_scale_fails(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SecureStream.normal
    monkeypatch.setattr(
        SecureStream, "normal", lambda self, *arguments: original(self, *arguments) * scale
    )
    law = randomness._noise_law(PLACE)
    assert law.passed is False
    assert "variance" in law.figure


def test_the_same_noise_twice_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = SecureStream(bytes(32)).normal((1 << 16,))
    monkeypatch.setattr(SecureStream, "normal", lambda self, *arguments: fixed)
    assert "repeats" in randomness._noise_law(PLACE).figure


def test_a_stream_of_fewer_rounds_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chacha, "_DOUBLE_ROUNDS", 9)
    outcome = randomness._chacha20(PLACE)
    assert outcome.passed is False
    assert not any(outcome.details.values())


def test_sums_off_the_grid_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    step = noise.grid_step
    monkeypatch.setattr(noise, "grid_step", lambda std: step(std) * 0.75)
    # What the check asks for stays right.
    monkeypatch.setattr(randomness, "noise", _With(noise, grid_step=step))
    assert randomness._noise_grid(PLACE).passed is False


class _With:
    """A module with some names of its own."""

    def __init__(self, module: Any, **names: Any) -> None:
        self.__dict__.update(vars(module), **names)


def test_clipping_that_is_too_weak_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping, "ROUNDING", -0.001)
    outcome = exactness._sensitivity_case("lora", torch.float32, PLACE)
    assert outcome.passed is False
    assert outcome.details["largest_over_C"] > 1


def test_norms_that_are_off_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = exactness.unit_norms
    monkeypatch.setattr(exactness, "unit_norms", lambda gradients: right(gradients) * 1.0001)
    assert exactness._norm_case("llama", "lora", torch.float32, PLACE).passed is False


def test_records_that_mix_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    own = CausalLmLoss.forward

    def mixed(self: CausalLmLoss, batch: Any) -> torch.Tensor:
        losses_B = own(self, batch)
        return losses_B * (1 + 1e-6 * losses_B.detach().mean())

    monkeypatch.setattr(CausalLmLoss, "forward", mixed)
    shapes = [(6, 16, exactness.Form.AUTO)]
    outcome = exactness._company_case("llama", "lora", torch.float32, shapes, PLACE)
    assert outcome.passed is False
    (explained,) = outcome.details["differences"].values()
    assert explained["others"]["parameters that differ"] > 0
