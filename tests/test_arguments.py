"""Whatever is given, by arguments, flags or YAML: it works, or one line says what is wrong.

FUZZ_EXAMPLES=2000 tries for longer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taciturn.cli.main import main
from taciturn.errors import TaciturnError
from taciturn.llm import LLM
from taciturn.spec import (
    EvaluateSpec,
    FitSpec,
    JobSpec,
    SampleJobSpec,
    SampleSpec,
    SynthesizeSpec,
    load_yaml,
    parse,
)

tried = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "12")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.5, 1e-40, 5e-324, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", " ", "a", "text", "id", "1", "auto", "unlimited", "cpu", "cuda:9", "float32", "nf4"),
    *("caf\udce9", "a\0b", "[red]", "{x}", "'\"`$", "\u202e", "x" * 5000, b"\xff", ".", "/"),
    *([], (), {}, [None], ["q_proj"], ["lm_head", "lm_head"], ("",), {"a": 1}, {1}, object()),
]
odd = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=9)
ROWS = [{"text": f"patient {i} has a cough", "id": f"p{i // 2}"} for i in range(12)]
QUICK: dict[str, Any] = {"text_field": "text", "target_epsilon": 8, "steps": 1, "batch_size": 4}


def some(names: Any) -> st.SearchStrategy[dict[str, Any]]:
    """One to three of the named arguments, each with a value that may be anything."""
    return st.dictionaries(st.sampled_from(sorted(names)), odd, min_size=1, max_size=3)


def works_or_is_refused(call: Callable[[], Any]) -> None:
    said = "worked"
    try:
        call()
    except TaciturnError as error:
        said = str(error)
    assert 0 < len(said) < 2000
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LLM:
    return LLM(str(tiny_llama))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative outputs are this test's, and threads stay one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)


@tried
@given(fields=some(FitSpec.model_fields))
def test_fit(tiny_llama: Path, fields: dict[str, Any]) -> None:
    steps = fields.get("steps")
    if isinstance(steps, int | float) and 3 < steps <= 10**8:
        fields["steps"] = 3
    works_or_is_refused(lambda: LLM(str(tiny_llama)).fit(ROWS, **QUICK | fields))


@tried
@given(fields=some(FitSpec.model_fields), n_units=odd)
def test_plan(model: LLM, fields: dict[str, Any], n_units: Any) -> None:
    works_or_is_refused(lambda: model.plan(n_units=n_units, **QUICK | fields))
    works_or_is_refused(lambda: model.plan(ROWS, **QUICK | fields))


@tried
@given(fields=some(set(SampleSpec.model_fields) - {"batch_size"}), prompts=odd)
def test_sample(model: LLM, fields: dict[str, Any], prompts: Any) -> None:
    if isinstance(fields.get("n"), int | float) and fields["n"] > 3:
        fields["n"] = 3
    fields = {"max_new_tokens": 2} | fields
    for given_prompts in (["The"], prompts, [prompts]):
        works_or_is_refused(lambda: model.sample(given_prompts, **fields))  # noqa: B023


@tried
@given(fields=some(set(SampleSpec.model_fields) - {"n", "batch_size"}), n=odd, prompts=odd)
def test_synthesize(model: LLM, fields: dict[str, Any], n: Any, prompts: Any) -> None:
    few = min(n, 3) if isinstance(n, int | float) else n
    fields = {"max_new_tokens": 2} | fields
    for given_prompts in (["The"], prompts, {"label": prompts}):
        works_or_is_refused(
            lambda: model.synthesize(few, prompts=given_prompts, **fields)  # noqa: B023
        )


@tried
@given(fields=some(set(EvaluateSpec.model_fields) - {"samples"}), data=odd)
def test_evaluate(model: LLM, fields: dict[str, Any], data: Any) -> None:
    for rows in (["A public text."], data):
        works_or_is_refused(lambda: model.evaluate(rows, **fields))  # noqa: B023


@tried
@given(
    fields=some(["device", "dtype", "quantization", "base"]),
    name=st.sampled_from(["", ".", "/", "a\0b", "caf\udce9", "x/y/z", "~", "~nobody/x", "x.gguf"]),
)
def test_a_model(fields: dict[str, Any], name: str) -> None:
    works_or_is_refused(lambda: LLM(name, **fields).sample(["The"]))


BASE = "taciturn/tiny-medical"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LLM(5), "model is int; give a name or a path"),  # type: ignore[arg-type]
        (lambda: LLM("x" * 5000), "model is a name of 5000 characters"),
        (lambda: LLM("x" * 3000).sample(["a"]), "neither a local folder nor reachable on the hub"),
        (lambda: LLM(BASE, base="x" * 300).sample(["a"]), "leave it out"),
        (lambda: LLM(BASE, base=5), "base is int"),  # type: ignore[arg-type]
        (lambda: LLM(BASE).fit(ROWS, **QUICK, output=5), "output=5 is no path"),  # type: ignore[call-overload]
        (lambda: LLM(BASE).fit(ROWS, **QUICK, observer=5), "observer is int"),  # type: ignore[call-overload]
        (
            lambda: LLM(BASE).fit(ROWS, **QUICK, signing_key=5),
            "signing_key=5: Input should be a valid string",
        ),  # type: ignore[call-overload]
        (lambda: LLM(BASE).fit(ROWS, **QUICK, signing_key="a\0"), "cannot be read"),
        (lambda: LLM(BASE).synthesize(1, output=5), "output=5 is no path"),  # type: ignore[arg-type]
        (lambda: LLM(BASE).synthesize(10**400), "n=1000.* must be a whole number from 1 to"),
        (lambda: LLM(BASE).synthesize(1.5), "n=1.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: LLM(BASE).plan(n_units=1.5), "n_units=1.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: LLM(BASE).plan(n_units=0), "n_units=0 must be a whole number"),
        (lambda: LLM(BASE).estimate(n_units=10**400), "n_units=1000.* must be a whole number"),
        (lambda: LLM(BASE).log_probability(5, "a"), "prompt is int"),  # type: ignore[arg-type]
        (lambda: LLM(BASE).log_probability("a", "\udce9"), "continuation is no UTF-8 text"),
        (lambda: LLM(BASE).extract(5), "secret is int"),  # type: ignore[arg-type]
        (lambda: LLM(BASE).extract("a", prefix="\udce9"), "prefix is no UTF-8 text"),
        (lambda: LLM(BASE).sample(["caf\udce9"]), "prompt 0 is no UTF-8 text from character 4 on"),
        (lambda: LLM(BASE).sample(None), "prompts must be a list"),  # type: ignore[arg-type]
        (lambda: LLM(BASE).sample(["a"], seed=2**64), "seed=18446744073709551616: .*less than"),
        (lambda: LLM(BASE).sample(["a"], temperature=1e-40), "must be 0, for greedy decoding, or"),
        (lambda: LLM(BASE).sample(["a"], temperature=1e9), "less than or equal to 100"),
    ],
)
def test_what_is_said(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TaciturnError, match=message) as refused:
        call()
    assert len(str(refused.value)) < 4000


def test_paths_are_paths(tiny_llama: Path, tmp_path: Path) -> None:
    """Also where their bytes are no UTF-8."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    LLM(tiny_llama).synthesize(1, output=folder.with_suffix(".parquet"), max_new_tokens=1)
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [b"caf\xe9.parquet"]


def command(arguments: list[str], capsys: Any, monkeypatch: Any) -> None:
    """Runs it in this process: exit code 0, 1 or 2, and no traceback."""
    monkeypatch.setattr(sys, "argv", ["taciturn", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert stop.value.code in (0, 1, 2, None), arguments
    assert "Traceback" not in shown.err + shown.out, arguments
    if stop.value.code == 1:
        assert "error: " in shown.err, arguments


def flags(kind: Any, skipped: set[str]) -> st.SearchStrategy[list[str]]:
    """Options of a command with odd texts for values."""
    names = sorted(set(kind.model_fields) - skipped)
    values = [str(value) for value in ODD if not isinstance(value, int) or abs(value) < 10**99]
    pair = st.tuples(st.sampled_from(names), st.sampled_from(values)).filter(
        lambda pair: "\0" not in pair[1]  # a shell cannot give it
    )
    return st.lists(pair, min_size=1, max_size=3).map(
        lambda pairs: [f"--{name.replace('_', '-')}={value}" for name, value in pairs]
    )


@tried
@given(given_flags=flags(JobSpec, {"model", "data", "steps", "output", "signing_key"}))
def test_plan_and_fit_from_the_command_line(
    tiny_llama: Path, given_flags: list[str], capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    common = [f"--model={tiny_llama}", "--target-epsilon=8", "--steps=1", *given_flags]
    command(["plan", "--n-units=100", *common], capsys, monkeypatch)
    rows = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    rows.write_text("\n".join(f'{{"text": "note {i}", "id": {i}}}' for i in range(12)), "utf-8")
    output = f"--output={tmp_path / ('o' + str(len(list(tmp_path.iterdir()))))}"
    command(["fit", f"--data={rows}", "--text-field=text", output, *common], capsys, monkeypatch)


@tried
@given(
    given_flags=flags(SampleJobSpec, {"model", "n", "batch_size", "output"}),
    output=st.sampled_from(["x.jsonl", ".", "no/x", "/proc/x", os.fsdecode(b"\xe9"), ""]),
)
def test_sample_from_the_command_line(
    tiny_llama: Path, given_flags: list[str], output: str, capsys: Any, monkeypatch: Any
) -> None:
    common = ["sample", str(tiny_llama), "-p", "The", "--max-new-tokens=2", *given_flags]
    command(common, capsys, monkeypatch)
    command([*common, "-o", output], capsys, monkeypatch)


@tried
@given(
    fields=st.dictionaries(
        st.sampled_from([*JobSpec.model_fields, "resume", "wait", "n_units", "nothing"]),
        odd.filter(lambda value: not isinstance(value, bytes | set) and type(value) is not object),
        max_size=4,
    ),
    noise=st.sampled_from(
        ["", "\0", "a: 2001-13-45", "[" * 5000, "a: &a [*a]", "x: !!int z", "- a"]
    ),
    named=st.sampled_from(["fit", "plan", "sample", "evaluate", "synthesize", "extract", "demo"]),
)
def test_yaml(
    tiny_llama: Path,
    fields: dict[str, Any],
    noise: str,
    named: str,
    capsys: Any,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    base = {"model": str(tiny_llama), "data": "no.jsonl", "target_epsilon": 8, "output": "out"}
    path = tmp_path / "job.yaml"
    try:
        text = yaml.safe_dump({**base, **fields}, allow_unicode=True)
        path.write_text(f"{text}\n{noise}", encoding="utf-8")
    except (yaml.YAMLError, UnicodeEncodeError, ValueError):
        path.write_bytes(b"model: caf\xe9")
    command([named, "-f", str(path)], capsys, monkeypatch)


@tried
@given(text=st.binary(max_size=60) | st.text("[]{}:&*!-?|>'\"#%@ \n\tab01.e_", max_size=40))
def test_job_files_of_any_bytes(text: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    works_or_is_refused(lambda: parse(SynthesizeSpec, load_yaml(path)))
