"""Plain values: one declaration for SDK arguments, CLI flags, YAML and REST.

Every field here is public information. Private values (rows, losses, counts) never enter a spec,
but for what a job file must say of a secret (ExtractJobSpec). Fields with repr=False are never
shown, nor quoted in an error.
"""

from __future__ import annotations

from taciturn.spec.attacks import Alternatives, AuditSpec, ExtractSpec, MembershipSpec
from taciturn.spec.base import (
    NOT_TINY,
    Flag,
    NewTokens,
    Seed,
    Spec,
    TopP,
    check_text,
    is_whole,
)
from taciturn.spec.data import GATEWAY, ONE_RECORD, DataSpec
from taciturn.spec.evaluation import AssessmentSpec, DownstreamSpec, EvaluateSpec
from taciturn.spec.fields import (
    DownstreamFields,
    DownstreamRunFields,
    EvaluateFields,
    EvaluateRunFields,
    ExtractFields,
    FitFields,
    FitRunFields,
    MembershipFields,
    RunFields,
    SampleFields,
    SynthesisFields,
)
from taciturn.spec.jobs import (
    AuditJobSpec,
    DemoSpec,
    DownstreamJobSpec,
    EvaluateJobSpec,
    ExtractJobSpec,
    JobSpec,
    LedgerSpec,
    MembershipJobSpec,
    ModelSpec,
    RunSpec,
    SampleJobSpec,
    SynthesizeSpec,
)
from taciturn.spec.parse import check_local, load_yaml, parse, take
from taciturn.spec.privacy import CanaryKind, CanarySpec, PrivacySpec, Unlimited
from taciturn.spec.sampling import SampleSpec, Sampling, SynthesisSpec
from taciturn.spec.training import FitSpec, Method, PerformanceSpec, TrainingSpec

__all__ = [
    "GATEWAY",
    "NOT_TINY",
    "ONE_RECORD",
    "Alternatives",
    "AssessmentSpec",
    "AuditJobSpec",
    "AuditSpec",
    "CanaryKind",
    "CanarySpec",
    "DataSpec",
    "DemoSpec",
    "DownstreamFields",
    "DownstreamJobSpec",
    "DownstreamRunFields",
    "DownstreamSpec",
    "EvaluateFields",
    "EvaluateJobSpec",
    "EvaluateRunFields",
    "EvaluateSpec",
    "ExtractFields",
    "ExtractJobSpec",
    "ExtractSpec",
    "FitFields",
    "FitRunFields",
    "FitSpec",
    "Flag",
    "JobSpec",
    "LedgerSpec",
    "MembershipFields",
    "MembershipJobSpec",
    "MembershipSpec",
    "Method",
    "ModelSpec",
    "NewTokens",
    "PerformanceSpec",
    "PrivacySpec",
    "RunFields",
    "RunSpec",
    "SampleFields",
    "SampleJobSpec",
    "SampleSpec",
    "Sampling",
    "Seed",
    "Spec",
    "SynthesisFields",
    "SynthesisSpec",
    "SynthesizeSpec",
    "TopP",
    "TrainingSpec",
    "Unlimited",
    "check_local",
    "check_text",
    "is_whole",
    "load_yaml",
    "parse",
    "take",
]
