"""The promise of a DPTrainer: what TrainingArguments have no place for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from taciturn.errors import SpecError


@dataclass(frozen=True, slots=True)
class PrivacyArguments:
    """Privacy of a run, and what only a private run has.

    Attributes:
        target_epsilon: budget, or "unlimited" for no privacy at all.
        target_delta: chance left out of the promise; default 10^-k at most 1/(10 n).
        unit: column that names whom a row is about; without it a row is protected for itself.
        max_records_per_unit: rows kept of each unit; None for the default.
        l2_clip_norm: bound on one unit's gradient norm, in place of max_grad_norm.
        method: auto, lora or full; auto is what taciturn would do by itself.
        r: rank of the adapter.
        alpha: scale of the adapter.
        target_modules: layers that get an adapter.
        max_tokens: tokens kept of a record; default SFTConfig's max_length, or 512.
        text_field, question_field, answer_field, messages_field: columns of text.
        public_data: text that you declare public; learned first, outside of the guarantee.
        eval_is_public: the evaluation data are declared public: judged exactly, and free.
        eval_epsilon: budget of each private evaluation, added to the model's guarantee.
        eval_delta: goes with it; default the model's.
        ledger, ledger_namespace: file that adds up runs on the same data.
        signing_key: signs the certificate in the output folder.

    Examples:
        >>> PrivacyArguments(target_epsilon=3, unit="patient_id").method
        'auto'
    """

    target_epsilon: float | Literal["unlimited"]
    target_delta: float | None = None
    unit: str | None = None
    max_records_per_unit: int | None = None
    l2_clip_norm: float | None = None
    method: Literal["auto", "lora", "full"] = "auto"
    r: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    max_tokens: int | None = None
    text_field: str | None = None
    question_field: str | None = None
    answer_field: str | None = None
    messages_field: str | None = None
    public_data: object = None
    eval_is_public: bool = False
    eval_epsilon: float | None = None
    eval_delta: float | None = None
    ledger: str | None = None
    ledger_namespace: str | None = None
    signing_key: str | None = None

    def __post_init__(self) -> None:
        if self.eval_is_public and (self.eval_epsilon or self.eval_delta):
            raise SpecError(
                f"eval_epsilon={self.eval_epsilon} charges an evaluation of private data, and "
                "eval_is_public=True says that they are public; give one"
            )
        if self.eval_delta is not None and self.eval_epsilon is None:
            raise SpecError(
                f"eval_delta={self.eval_delta} goes with eval_epsilon; give that, for example 1"
            )
