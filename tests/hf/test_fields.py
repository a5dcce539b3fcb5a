"""Every field of the arguments is in the table, and those that would break the guarantee fail."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from taciturn.errors import SpecError
from taciturn.hf.fields import FIELDS, SFT, TRAINING, check_fields, table
from taciturn.hf.privacy import PrivacyArguments
from taciturn.hf.settings import Cadence, settings_of

SOURCES = ("settings.py", "trainer.py", "log.py")
TRL = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="trl is not installed; pip install trl"
)


def arguments(tmp_path: Path, **fields: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **fields)


def test_no_field_of_the_installed_transformers_is_missing() -> None:
    assert {field.name for field in dataclasses.fields(TrainingArguments)} <= TRAINING.keys()


@TRL
def test_no_field_of_the_installed_trl_is_missing() -> None:
    from trl import SFTConfig

    own = {field.name for field in dataclasses.fields(SFTConfig)}
    assert own - TRAINING.keys() <= SFT.keys()


def test_the_page_has_the_table_that_the_command_prints(root: Path) -> None:
    page = (root / "docs" / "trainer.md").read_text(encoding="utf-8")
    assert page.endswith(table().lstrip("\n") + "\n"), "python -m taciturn.hf prints it"


def test_what_is_mapped_is_read(root: Path) -> None:
    folder = root / "src" / "taciturn" / "hf"
    code = "".join((folder / name).read_text(encoding="utf-8") for name in SOURCES)
    # Of these only one value is allowed, which is what the engine does.
    fixed = {"optim", "truncation_mode", "completion_only_loss", "assistant_only_loss", "loss_type"}
    for name, field in FIELDS.items():
        if field.kind == "mapped" and name not in fixed:
            assert name in code, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_sampling_strategy", "group_by_length"),
        ("train_sampling_strategy", "sequential"),
        ("data_seed", 1),
        ("full_determinism", True),
        ("label_smoothing_factor", 0.1),
        ("neftune_noise_alpha", 5.0),
        ("max_grad_norm", 0.5),
        ("fp16", True),
        ("optim", "sgd"),
        ("lr_scheduler_type", "polynomial"),
        ("dataloader_drop_last", True),
        ("prediction_loss_only", True),
        ("include_num_input_tokens_seen", True),
        ("auto_find_batch_size", True),
        ("use_liger_kernel", True),
        ("metric_for_best_model", "loss"),
        ("greater_is_better", True),
        ("push_to_hub", True),
        ("save_only_model", True),
        ("include_for_metrics", ["loss"]),
        ("skip_memory_metrics", False),
        ("adam_epsilon", 1e-6),
        ("report_to", ["comet_ml"]),
        ("logging_strategy", "best"),
        ("accelerator_config", {"split_batches": True}),
        ("debug", "underflow_overflow"),
    ],
)
def test_an_option_that_would_break_it_is_refused_by_name(
    name: str, value: Any, tmp_path: Path
) -> None:
    args = arguments(tmp_path)
    try:  # as people give it, where the library itself does not fail over it
        args = TrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, name: value})
    except (ValueError, ImportError):
        setattr(args, name, value)
    with pytest.raises(SpecError, match=f"^{name}="):
        check_fields(args)


def test_the_best_model_at_the_end_is_refused(tmp_path: Path) -> None:
    args = arguments(
        tmp_path, load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps"
    )
    with pytest.raises(SpecError, match="not charged would tell of them"):
        check_fields(args)


def test_a_field_of_a_later_version_is_refused_unless_at_its_default(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Later(TrainingArguments):
        new_option: int = 0

    check_fields(Later(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(SpecError, match="new_option=1: it is not known here"):
        check_fields(Later(output_dir=str(tmp_path), use_cpu=True, new_option=1))


def test_defaults_leave_the_optimiser_to_the_plan(tmp_path: Path) -> None:
    settings = settings_of(arguments(tmp_path), PrivacyArguments(3))
    assert "learning_rate" not in settings.fields
    assert settings.optimizer.settings(100) == {}
    assert "learning_rate is at its default" in settings.notes[0]
    assert settings.fields["batch_size"] == 8
    assert settings.fields["epochs"] == 3
    assert settings.fields["checkpoint_every"] == 500
    assert settings.fields["seed"] == 42


def test_what_is_set_is_mapped(tmp_path: Path) -> None:
    args = arguments(
        tmp_path,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.95,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        max_steps=50,
        save_steps=7,
        bf16=True,
        gradient_checkpointing=True,
        seed=3,
    )
    privacy = PrivacyArguments(2, target_delta=1e-4, unit="id", max_records_per_unit=3, r=4)
    settings = settings_of(args, privacy)
    expected = {
        "target_epsilon": 2,
        "delta": 1e-4,
        "privacy_unit": "id",
        "max_records_per_unit": 3,
        "r": 4,
        "batch_size": 32,
        "steps": 50,
        "learning_rate": 1e-3,
        "checkpoint_every": 7,
        "gradient_checkpointing": True,
        "seed": 3,
    }
    assert expected.items() <= settings.fields.items()
    assert "epochs" not in settings.fields
    assert settings.dtype == "bfloat16"
    assert settings.optimizer.settings(50) == {
        "warmup_steps": 5,
        "decay": "linear",
        "beta1": 0.8,
        "beta2": 0.95,
        "weight_decay": 0.1,
    }


@TRL
def test_trls_arguments(tmp_path: Path) -> None:
    from trl import SFTConfig

    settings_of(SFTConfig(output_dir=str(tmp_path), use_cpu=True), PrivacyArguments(3))
    for name, value in (("packing", True), ("shuffle_dataset", True), ("loss_type", "dft")):
        args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})
        with pytest.raises(SpecError, match=f"^{name}="):
            check_fields(args)


def test_private_evaluations_while_training_are_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=5)
    with pytest.raises(SpecError, match=r"eval_strategy=steps.*call evaluate"):
        settings_of(args, PrivacyArguments(3, eval_epsilon=1))
    public = settings_of(args, PrivacyArguments(3, eval_is_public=True))
    assert public.evaluating == Cadence(5)


@pytest.mark.parametrize(
    ("every", "steps"),
    [(2, [2, 4, 6, 8, 10]), (0.5, [5, 10]), ("epoch", [4, 8, 10]), (None, [])],
)
def test_cadence(every: Any, steps: list[int]) -> None:
    assert [step for step in range(1, 11) if Cadence(every).is_due(step, 10, 4)] == steps


@pytest.mark.parametrize(
    "fields", [{"eval_is_public": True, "eval_epsilon": 1}, {"eval_delta": 1e-5}]
)
def test_evaluations_are_public_or_charged(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="eval_epsilon"):
        PrivacyArguments(3, **fields)
