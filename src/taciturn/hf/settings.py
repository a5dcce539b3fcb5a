"""TrainingArguments and PrivacyArguments as arguments of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments

from taciturn.engine.training.torchrun import started_together
from taciturn.errors import SpecError
from taciturn.hf.fields import check_fields
from taciturn.hf.models import Adapter
from taciturn.hf.privacy import PrivacyArguments
from taciturn.planning.optimizer import OptimizerChoice

_DECAY: dict[str, bool | Literal["linear"]] = {
    "linear": "linear",
    "cosine": True,
    "constant": False,
    "constant_with_warmup": False,
}
_MOST_STEPS = 10**8


@dataclass(frozen=True, slots=True)
class Cadence:
    """Steps between two entries of a kind; a share of all steps below 1; None for never.

    `epoch` is for one entry in each expected pass over the units.
    """

    every: float | Literal["epoch"] | None

    def is_due(self, step: int, steps: int, per_epoch: int) -> bool:
        """Return whether there is one after `step` of `steps`."""
        if self.every is None:
            return False
        if self.every == "epoch":
            return step % per_epoch == 0 or step == steps
        every = self.every if self.every >= 1 else self.every * steps
        return step % max(1, round(every)) == 0


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the arguments decide.

    Attributes:
        fields: of `LocalModel.fit`, but for the columns of text.
        optimizer: what the arguments decide of it.
        notes: what is not as somebody who knows the Trainer would expect, in words.
    """

    output: Path
    fields: dict[str, Any]
    optimizer: OptimizerChoice
    device: str | None
    dtype: Literal["bfloat16"] | None
    logging: Cadence
    evaluating: Cadence
    first_step: bool
    notes: tuple[str, ...]


def settings_of(args: TrainingArguments, privacy: PrivacyArguments) -> Settings:
    """Map the arguments; raises SpecError for the first that cannot be honoured, by name."""
    changed = check_fields(args)
    logging = _cadence(args.logging_strategy, args.logging_steps)
    evaluating = _cadence(args.eval_strategy, args.eval_steps or args.logging_steps)
    if evaluating.every is not None and not privacy.eval_is_public:
        raise SpecError(
            f"eval_strategy={_text(args.eval_strategy)}: a loss on private rows is private, and "
            "each would have to be paid for; say PrivacyArguments(eval_is_public=True) of public "
            "data, or call evaluate() after train(), which is charged"
        )
    # SFTConfig has it on by default, and a CPU has no arithmetic for it.
    bf16 = bool(args.bf16) and ("bf16" in changed or (not args.use_cpu and _has_gpu()))
    optimizer, notes = _optimizer(args, changed)
    return Settings(
        output=Path(str(args.output_dir)).expanduser(),
        fields=_fields(args, privacy, changed),
        optimizer=optimizer,
        device="cpu" if args.use_cpu else None,
        dtype="bfloat16" if bf16 else None,
        logging=logging,
        evaluating=evaluating,
        first_step=bool(args.logging_first_step),
        notes=notes,
    )


def with_adapter(fields: dict[str, Any], adapter: Adapter | None) -> dict[str, Any]:
    """Return the fields with the adapter that came with the model; raises SpecError for two."""
    if adapter is None:
        return fields
    for name in ("r", "alpha", "target_modules"):
        if name in fields:
            raise SpecError(
                f"{name} is in PrivacyArguments, and the model or peft_config says it, too; give "
                "it in one place"
            )
    own = {"r": adapter.r, "alpha": adapter.alpha, "target_modules": adapter.target_modules}
    return {**fields, "method": "lora", **{key: own[key] for key in own if own[key] is not None}}


def logical_batch(args: TrainingArguments) -> int:
    """Return the expected units of one logical step, over all processes."""
    processes = int(args.world_size) if started_together() else 1
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * processes


def _fields(
    args: TrainingArguments, privacy: PrivacyArguments, changed: frozenset[str]
) -> dict[str, Any]:
    checkpointing = args.gradient_checkpointing or getattr(args, "activation_checkpointing", None)
    fields: dict[str, Any] = {
        "target_epsilon": privacy.target_epsilon,
        "delta": privacy.target_delta,
        "privacy_unit": privacy.unit,
        "max_records_per_unit": privacy.max_records_per_unit,
        "l2_clip_norm": privacy.l2_clip_norm,
        "method": privacy.method,
        "r": privacy.r,
        "alpha": privacy.alpha,
        "target_modules": privacy.target_modules,
        "max_tokens": privacy.max_tokens,
        "public_data": privacy.public_data,
        "ledger": privacy.ledger,
        "ledger_namespace": privacy.ledger_namespace,
        "signing_key": privacy.signing_key,
        "batch_size": logical_batch(args),
        "steps": args.max_steps if args.max_steps > 0 else None,
        "epochs": None if args.max_steps > 0 else args.num_train_epochs,
        "learning_rate": args.learning_rate if "learning_rate" in changed else None,
        "seed": args.seed,
        "gradient_checkpointing": bool(checkpointing) or None,
        "compile": bool(args.torch_compile),
        "checkpoint_every": _checkpoint_every(args),
        "report_to": _trackers(args),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _optimizer(
    args: TrainingArguments, changed: frozenset[str]
) -> tuple[OptimizerChoice, tuple[str, ...]]:
    """Return the optimiser: a rate that is set brings its schedule, an open one leaves both."""
    scheduled = bool(changed & {"learning_rate", "lr_scheduler_type"})
    warmup = getattr(args, "warmup_ratio", None) or args.warmup_steps
    choice = OptimizerChoice(
        warmup=float(warmup) if warmup or scheduled else None,
        decay=_DECAY[_text(args.lr_scheduler_type)] if scheduled else None,
        beta1=args.adam_beta1 if "adam_beta1" in changed else None,
        beta2=args.adam_beta2 if "adam_beta2" in changed else None,
        weight_decay=args.weight_decay if "weight_decay" in changed else None,
    )
    note = (
        f"learning_rate is at its default, {args.learning_rate:g}, which is far too low for "
        "private fits: the plan decides it. To have just this rate, change it by a hair"
    )
    return choice, () if "learning_rate" in changed else (note,)


def _checkpoint_every(args: TrainingArguments) -> int | None:
    if _text(args.save_strategy) == "no":
        return _MOST_STEPS  # the last one is always written
    if _text(args.save_strategy) != "steps":
        return None
    if args.save_steps >= 1:
        return int(args.save_steps)
    return max(1, round(args.save_steps * args.max_steps)) if args.max_steps > 0 else None


def _trackers(args: TrainingArguments) -> tuple[str, ...]:
    report_to = args.report_to or ()
    trackers = (report_to,) if isinstance(report_to, str) else tuple(report_to)
    place = getattr(args, "logging_dir", None)
    return tuple(
        f"tensorboard:{place}" if tracker == "tensorboard" and place else tracker
        for tracker in trackers
        if tracker != "none"
    )


def _cadence(strategy: Any, every: float) -> Cadence:
    kind = _text(strategy)
    if kind == "no":
        return Cadence(None)
    return Cadence("epoch" if kind == "epoch" else every)


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
