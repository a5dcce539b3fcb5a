"""One run of a command: what it does, and to which model. The YAML file and the flags."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from taciturn.spec.attacks import AuditSpec, ExtractSpec, MembershipSpec
from taciturn.spec.base import NUMBER, OUTPUT, POSITIONAL, Flag, Seed, Spec
from taciturn.spec.evaluation import DownstreamSpec, EvaluateSpec
from taciturn.spec.sampling import SampleSpec, SynthesisSpec
from taciturn.spec.training import Device, FitSpec

TRACKERS = ("tensorboard", "mlflow", "wandb", "csv")
BaseFolder = Annotated[
    str | None, Field(description="Where the base of a fitted model is, if that has moved.")
]
SigningKey = Annotated[
    str | None,
    Field(description="Key that signs the certificate: PEM file, env:NAME or command:PROGRAM."),
]
ResultFile = Annotated[str | None, OUTPUT, Field(description="JSON file for the result.")]


class ModelSpec(Spec):
    """The model that a command is about."""

    model: Annotated[
        str, POSITIONAL, Field(description="Output folder of a fit, a base model, or gateway:ID.")
    ]
    base: BaseFolder = None
    device: Device = None


class LedgerSpec(Spec):
    """Ledger file, where runs on the same data add up on this machine."""

    ledger: Annotated[
        str | None,
        Field(description="Adds this run up with others on the same data: sqlite:///FILE."),
    ] = None
    ledger_namespace: Annotated[
        str | None, Field(description="What the data are called there; default: where they are.")
    ] = None

    @model_validator(mode="after")
    def _name_of_something(self) -> Self:
        if self.ledger_namespace is not None and self.ledger is None:
            raise ValueError(
                f"ledger_namespace={self.ledger_namespace!r} names data in a ledger; give ledger, "
                "for example sqlite:///ledger.db"
            )
        return self


class TrackingSpec(Spec):
    """Trackers that get what may be shown of a run: nothing that the budget has not paid for."""

    report_to: Annotated[
        tuple[str, ...],
        Field(
            description="Tracker for public values: tensorboard, mlflow, wandb or csv, or "
            "NAME:PLACE, such as csv:FILE; may be repeated."
        ),
    ] = ()

    @field_validator("report_to", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Accept one name, and "none"."""
        if value is None or value == "none":
            return ()
        return (value,) if isinstance(value, str) else value

    @field_validator("report_to")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if entry.partition(":")[0] not in TRACKERS:
                raise ValueError(
                    f"there is no tracker {entry.partition(':')[0]!r}; choose among "
                    f"{', '.join(TRACKERS)}"
                )
        return value


class RunSpec(LedgerSpec, TrackingSpec):
    """Arguments of all runs about private rows: a ledger, trackers, and a certificate's key."""

    signing_key: SigningKey = None


class JobSpec(FitSpec, RunSpec):
    """One fit job: the YAML file, the CLI's flags, the worker's input."""

    model: Annotated[str, Field(description="Hub id, local path, GGUF path, or embedded name.")]
    base: BaseFolder = None
    data: Annotated[
        str, Field(description="Path, glob or URL of JSON, CSV, Parquet or Arrow; or gateway:NAME.")
    ]
    public_data: Annotated[
        str | None,
        Field(
            description="Text that you declare public: path, glob or URL; fitted first. A "
            "gateway's data: name of a public data set there."
        ),
    ] = None
    output: Annotated[str, Field(description="Folder for the adapter and its reports.")] = (
        "taciturn-out"
    )


class SampleJobSpec(SampleSpec, ModelSpec):
    """Arguments of `taciturn sample`."""

    prompt: Annotated[
        tuple[str, ...],
        Flag(("--prompt", "-p")),
        Field(min_length=1, description="Text to continue; may be repeated."),
    ]
    output: Annotated[
        str | None, OUTPUT, Field(description="Write JSONL here, not to the screen.")
    ] = None


class SynthesizeSpec(SynthesisSpec, ModelSpec):
    """Arguments of `taciturn synthesize`."""

    n: Annotated[int, NUMBER, Field(ge=1, le=10_000_000, description="Records to write.")]
    output: Annotated[str, OUTPUT, Field(description="Parquet file to write.")]
    prompt: Annotated[
        tuple[str, ...],
        Field(description="How records begin, in turn; LABEL=TEXT makes a column of labels."),
    ] = ("",)


class EvaluateJobSpec(EvaluateSpec, RunSpec, ModelSpec):
    """Arguments of `taciturn evaluate`."""

    data: Annotated[
        str, POSITIONAL, Field(description="File to judge it on; public without --target-epsilon.")
    ]


class DownstreamJobSpec(DownstreamSpec, RunSpec, ModelSpec):
    """Arguments of `taciturn downstream`."""

    synthetic: Annotated[
        str, POSITIONAL, Field(description="Labelled text to train a classifier on.")
    ]
    test: Annotated[str, POSITIONAL, Field(description="Real labelled text to test it on.")]


class AuditJobSpec(AuditSpec, ModelSpec):
    """Arguments of `taciturn audit`."""

    signing_key: SigningKey = None


class ExportSpec(Spec):
    """The arguments of `LLM.export`, besides the folder."""

    form: Annotated[
        Literal["merged", "gguf", "ollama"], Field(description="Form that others serve.")
    ] = "merged"
    weights: Annotated[
        Literal["f32", "f16", "q8_0"],
        Field(description="Numbers that the weights of a GGUF file are kept in."),
    ] = "f16"


class PushSpec(Spec):
    """The arguments of `LLM.push_to_hub`, besides the repository and a token."""

    private: Annotated[
        bool, Field(description="A repository that is made is its owner's alone.")
    ] = True
    message: Annotated[str | None, Field(description="Message of the commit.")] = None
    without_guarantee: Annotated[
        bool, Field(description="Send a model that promises nothing, too.")
    ] = False


class ExtractJobSpec(ExtractSpec, ModelSpec):
    """Arguments of `taciturn extract`. Secret, prefix and telltale are the user's own knowledge."""

    secret: Annotated[
        str,
        Field(
            description="The secret that the model should not tell; better given in a file.",
            repr=False,
        ),
    ]
    prefix: Annotated[
        str, Field(description="Text from which the model continues.", repr=False)
    ] = ""
    telltale: Annotated[
        str | None,
        Field(
            description="Words that give the secret away; by default the secret itself.", repr=False
        ),
    ] = None
    output: ResultFile = None


class MembershipJobSpec(MembershipSpec, ModelSpec):
    """Arguments of `taciturn membership`."""

    members: Annotated[str, POSITIONAL, Field(description="Units that were in the training data.")]
    non_members: Annotated[str, POSITIONAL, Field(description="Units like them that were not.")]
    output: Annotated[
        str | None, Field(description="Name of a JSON file for the model's private folder.")
    ] = None


class DemoSpec(Spec):
    """Arguments of `taciturn demo`."""

    model: Annotated[
        str, Field(description="Base model: hub id, local path, GGUF path, or embedded name.")
    ] = "taciturn/tiny-medical"
    minutes: Annotated[
        float,
        Field(
            gt=0,
            le=10_000,
            allow_inf_nan=False,
            description="Time for each fit of another model than the embedded one; more buys "
            "more patients, of whom there are at least 300.",
        ),
    ] = 10.0
    output: Annotated[str, OUTPUT, Field(description="Path of the page with the report.")] = (
        "demo-report.html"
    )
    notes: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Write invented notes of 1,200 patients there, a JSON line each, and tell "
            "no story.",
        ),
    ] = None
    seed: Annotated[Seed, Field(description="Seeds the invented notes and samples.")] = 0
    epsilon: Annotated[
        float,
        Field(ge=0.01, le=1000, allow_inf_nan=False, description="Budget of the private fit."),
    ] = 3.0
