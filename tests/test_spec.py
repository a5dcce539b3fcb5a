"""What a job may say: errors name value, bound and remedy, for YAML as for Python."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from taciturn import spec
from taciturn.errors import PrivacyParameterError, SpecError, UnknownFieldError
from taciturn.spec import FitSpec, JobSpec, fields, load_yaml, parse


@pytest.mark.parametrize("value", ["three", "", True, False, [3], {"epsilon": 3}])
def test_epsilon_that_is_no_number(value: Any) -> None:
    with pytest.raises(PrivacyParameterError) as caught:
        parse(FitSpec, {"target_epsilon": value})
    for part in (f"target_epsilon={value!r}", "[0.01, 1000]", '"unlimited"'):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 1001, math.inf, math.nan, "nan"])
def test_epsilon_out_of_bounds(value: Any) -> None:
    with pytest.raises(PrivacyParameterError, match=r"\[0.01, 1000\]; choose for example 3"):
        parse(FitSpec, {"target_epsilon": value})


@pytest.mark.parametrize(
    ("value", "expected"), [(3, 3.0), ("3", 3.0), ("unlimited", "unlimited"), (None, None)]
)
def test_epsilon(value: Any, expected: Any) -> None:
    assert parse(FitSpec, {"target_epsilon": value}).target_epsilon == expected


@pytest.mark.parametrize("field", ["l2_clip_norm", "epochs", "learning_rate", "alpha"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, -1.0])
def test_positive_numbers_are_finite(field: str, value: float) -> None:
    with pytest.raises(SpecError, match=f"{field}={value}"):
        parse(FitSpec, {field: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00PAR1", "not UTF-8 text; -f takes YAML"),
        (b"{[", "not YAML at line 1, column 3"),
        (b"- model: x\n", "must hold `field: value` lines"),
        (b"1: model\n", "must hold `field: value` lines"),
        (b"", "must hold `field: value` lines"),
    ],
)
def test_files_that_hold_no_job(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        load_yaml(path)


def test_unknown_field_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: x\ndata: y\ntext_feld: text\n")
    with pytest.raises(UnknownFieldError, match="did you mean 'text_field'"):
        parse(JobSpec, load_yaml(path))


def test_a_column_of_public_data_needs_public_data() -> None:
    with pytest.raises(SpecError, match="public_text_field='note' is a column of public_data"):
        parse(FitSpec, {"public_text_field": "note"})
    with pytest.raises(SpecError, match="public_data=5"):
        parse(JobSpec, {"model": "x", "data": "y", "public_data": 5})
    frame = object()
    assert parse(FitSpec, {"public_data": frame}).public_data is frame


@pytest.mark.parametrize("kind", [kind for name, kind in vars(fields).items() if "Fields" in name])
def test_keyword_arguments_are_the_fields_of_specs(kind: Any) -> None:
    names = (kind.__doc__ or "").rstrip(".").split(" and ")
    declared = {field for name in names for field in getattr(spec, name).model_fields}
    assert declared == kind.__annotations__.keys()
