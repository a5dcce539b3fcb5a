"""A fit: what is trained, for how long, how fast, and with which promise."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from taciturn.spec.base import Seed, Spec
from taciturn.spec.data import DataSpec, PublicSpec
from taciturn.spec.privacy import CanarySpec, PrivacySpec

Method = Literal["auto", "lora", "full"]
Objective = Literal["sft", "dpo"]
PAIR_FIELDS = ("prompt_field", "chosen_field", "rejected_field")
_USUAL_BETA = 0.1
Device = Annotated[str | None, Field(description="cpu, cuda, mps; default: the best.")]


class TrainingSpec(Spec):
    """Method and length of training. None means: `method="auto"` decides."""

    objective: Annotated[
        Objective, Field(description="sft: predict the text. dpo: prefer the chosen answer.")
    ] = "sft"
    beta: Annotated[
        float,
        Field(
            ge=1e-3,
            le=10,
            allow_inf_nan=False,
            description="dpo: how closely the fitted model is held to the base.",
        ),
    ] = _USUAL_BETA
    method: Annotated[Method, Field(description="auto, lora or full.")] = "auto"
    r: Annotated[int | None, Field(ge=1, le=16_384, description="LoRA rank.")] = None
    alpha: Annotated[
        float | None, Field(ge=1e-6, le=1e6, allow_inf_nan=False, description="LoRA scale alpha.")
    ] = None
    target_modules: Annotated[
        tuple[str, ...] | None, Field(description="Modules that get a LoRA adapter.")
    ] = None
    epochs: Annotated[
        float | None,
        Field(gt=0, le=1e6, allow_inf_nan=False, description="Expected passes over the units."),
    ] = None
    steps: Annotated[
        int | None, Field(ge=1, le=10**8, description="Optimiser steps; instead of epochs.")
    ] = None
    max_minutes: Annotated[
        float | None,
        Field(
            ge=0.01,
            le=1e5,
            allow_inf_nan=False,
            description="Time limit of the steps, at 64 tokens a unit; decides batch and steps.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(ge=1e-12, le=1e3, allow_inf_nan=False, description="Peak learning rate."),
    ] = None
    seed: Annotated[
        Seed, Field(description="Seeds initial adapter weights; never noise or sampling.")
    ] = 0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs={self.epochs:g} and steps={self.steps} both set the length; give one"
            )
        if self.epochs is not None and self.max_minutes is not None:
            raise ValueError(
                f"epochs={self.epochs:g} sets how many units are seen, and "
                f"max_minutes={self.max_minutes:g} limits that; give one"
            )
        if self.method == "full" and (self.r or self.alpha or self.target_modules):
            raise ValueError('r, alpha and target_modules need method="lora"')
        return self


class PerformanceSpec(Spec):
    """Speed and memory. None of it changes what is computed or promised."""

    device: Device = None
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        Field(description="Arithmetic; default: bfloat16 on GPU, float32 on CPU."),
    ] = None
    quantization: Annotated[
        Literal["int8", "nf4"] | None,
        Field(description="Load the frozen base in int8 or 4 bits (bitsandbytes or torchao)."),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Field(
            description="Recompute activations in the backward pass to save memory; default: on a "
            "GPU that has too little without."
        ),
    ] = None
    microbatch_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=2**31,
            description="Tokens of one physical microbatch, padding included; default: as many as "
            "a GPU has room for, 2,048 elsewhere.",
        ),
    ] = None
    per_unit_gradients: Annotated[
        Literal["auto", "instantiate", "factors"],
        Field(description="How matrices' per-unit gradients are kept; all are exact."),
    ] = "auto"
    packed_rows: Annotated[
        bool,
        Field(
            description="Refused if true: rows of several units, who would round by each other. "
            "A unit's own records share rows where the model keeps them apart."
        ),
    ] = False
    sharding: Annotated[
        Literal["none", "full"],
        Field(
            description="full: with several processes (torchrun), each holds a part of the weights."
        ),
    ] = "none"
    compile: Annotated[
        bool,
        Field(description="torch.compile what nothing is trained in: a minute, then faster steps."),
    ] = False
    cuda_graphs: Annotated[
        bool | None,
        Field(
            description="Start a microbatch's kernels together, as recorded before the run; "
            "default: on a GPU, for LoRA, in runs of 100 steps or more (units of several records: "
            "of a few hundred). Elsewhere it does nothing."
        ),
    ] = None
    threads: Annotated[int | None, Field(ge=1, le=1024, description="CPU threads.")] = None
    checkpoint_every: Annotated[
        int, Field(ge=1, le=10**8, description="Steps between two resumable checkpoints.")
    ] = 10


class FitSpec(DataSpec, PrivacySpec, TrainingSpec, PerformanceSpec, CanarySpec, PublicSpec):
    """The arguments of `LLM.fit`, flat; its six parts are the base classes above."""

    @model_validator(mode="before")
    @classmethod
    def _usual_columns(cls, fields: Any) -> Any:
        """Name the columns of pairs as everybody does, where nobody says how they are called."""
        if isinstance(fields, dict) and fields.get("objective") == "dpo":
            usual = {name: name.removesuffix("_field") for name in PAIR_FIELDS}
            own = {name: value for name, value in fields.items() if value is not None}
            return fields | usual | {name: own[name] for name in PAIR_FIELDS if name in own}
        return fields

    @model_validator(mode="after")
    def _preferences(self) -> Self:
        if self.objective == "sft":
            columns = [name for name in PAIR_FIELDS if getattr(self, name) is not None]
            if columns or self.beta != _USUAL_BETA:
                raise ValueError(
                    f"{', '.join(columns) or 'beta'} is for pairs of answers, and "
                    'objective="sft" predicts a text; give objective="dpo", or leave it out'
                )
            return self
        reasons = {
            'method="full"': self.method == "full",
            'sharding="full"': self.sharding == "full",
            "public_data": self.public_data is not None,
        }
        remedies = (
            "what a fit compares with is the base with its adapters off, so take method='lora'",
            "its base has to be whole in each process, so leave sharding out",
            "fit the text first, export that model merged, and take it as the base",
        )
        for (name, is_set), remedy in zip(reasons.items(), remedies, strict=True):
            if is_set:
                raise ValueError(f'{name} does not go with objective="dpo": {remedy}')
        return self

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.question_field is None) != (self.answer_field is None):
            raise ValueError(
                f"question_field={self.question_field!r} and answer_field={self.answer_field!r} "
                "go together; give both"
            )
        kinds = [self.text_field, self.question_field, self.messages_field, self.chosen_field]
        if sum(kind is not None for kind in kinds) > 1:
            raise ValueError(
                "text_field, question_field/answer_field, messages_field and the three fields of "
                "pairs exclude each other; give one of them"
            )
        if None not in (self.max_minutes, self.batch_size, self.steps):
            raise ValueError(
                f"batch_size={self.batch_size} and steps={self.steps} together say how long it "
                f"takes, and max_minutes={self.max_minutes:g} limits that; leave one of them out"
            )
        if self.packed_rows:
            raise ValueError(
                "packed_rows=True: units that share a row round by each other, so that one would "
                "show in the other's gradient; leave it out: only a unit's own records share rows"
            )
        if self.compile and self.sharding == "full":
            raise ValueError(
                "compile=True and sharding='full' exclude each other: FSDP puts weights together "
                "between the parts that would be compiled; leave one out"
            )
        return self

    @property
    def private(self) -> bool:
        """True unless the caller asked for no guarantee."""
        return self.target_epsilon != "unlimited"
