"""Plain values: one declaration for SDK arguments, CLI flags, YAML and REST.

Every field here is public information. Private values (rows, losses, counts) never enter a spec,
but for what a job file must say of a secret (ExtractJobSpec). Fields with repr=False are never
shown, nor quoted in an error.
"""

from __future__ import annotations

from taciturn.spec.attacks import AuditSpec as AuditSpec
from taciturn.spec.attacks import ExtractSpec as ExtractSpec
from taciturn.spec.attacks import MembershipSpec as MembershipSpec
from taciturn.spec.base import NOT_TINY as NOT_TINY
from taciturn.spec.base import POSITIONAL as POSITIONAL
from taciturn.spec.base import Flag as Flag
from taciturn.spec.base import NewTokens as NewTokens
from taciturn.spec.base import Seed as Seed
from taciturn.spec.base import Spec as Spec
from taciturn.spec.base import TopP as TopP
from taciturn.spec.base import check_text as check_text
from taciturn.spec.base import is_whole as is_whole
from taciturn.spec.data import GATEWAY as GATEWAY
from taciturn.spec.data import ONE_RECORD as ONE_RECORD
from taciturn.spec.data import DataSpec as DataSpec
from taciturn.spec.data import PublicSpec as PublicSpec
from taciturn.spec.evaluation import AssessmentSpec as AssessmentSpec
from taciturn.spec.evaluation import DownstreamSpec as DownstreamSpec
from taciturn.spec.evaluation import EvaluateSpec as EvaluateSpec
from taciturn.spec.fields import DataFields as DataFields
from taciturn.spec.fields import DownstreamFields as DownstreamFields
from taciturn.spec.fields import DownstreamRunFields as DownstreamRunFields
from taciturn.spec.fields import EvaluateFields as EvaluateFields
from taciturn.spec.fields import EvaluateRunFields as EvaluateRunFields
from taciturn.spec.fields import ExtractFields as ExtractFields
from taciturn.spec.fields import FitFields as FitFields
from taciturn.spec.fields import FitRunFields as FitRunFields
from taciturn.spec.fields import MembershipFields as MembershipFields
from taciturn.spec.fields import SampleFields as SampleFields
from taciturn.spec.fields import SynthesisFields as SynthesisFields
from taciturn.spec.jobs import AuditJobSpec as AuditJobSpec
from taciturn.spec.jobs import DemoSpec as DemoSpec
from taciturn.spec.jobs import DownstreamJobSpec as DownstreamJobSpec
from taciturn.spec.jobs import EvaluateJobSpec as EvaluateJobSpec
from taciturn.spec.jobs import ExportSpec as ExportSpec
from taciturn.spec.jobs import ExtractJobSpec as ExtractJobSpec
from taciturn.spec.jobs import JobSpec as JobSpec
from taciturn.spec.jobs import LedgerSpec as LedgerSpec
from taciturn.spec.jobs import MembershipJobSpec as MembershipJobSpec
from taciturn.spec.jobs import ModelSpec as ModelSpec
from taciturn.spec.jobs import PushSpec as PushSpec
from taciturn.spec.jobs import RunSpec as RunSpec
from taciturn.spec.jobs import SampleJobSpec as SampleJobSpec
from taciturn.spec.jobs import SynthesizeSpec as SynthesizeSpec
from taciturn.spec.parse import check_local as check_local
from taciturn.spec.parse import load_yaml as load_yaml
from taciturn.spec.parse import parse as parse
from taciturn.spec.parse import take as take
from taciturn.spec.privacy import CanaryKind as CanaryKind
from taciturn.spec.privacy import CanarySpec as CanarySpec
from taciturn.spec.privacy import PrivacySpec as PrivacySpec
from taciturn.spec.sampling import SampleSpec as SampleSpec
from taciturn.spec.sampling import Sampling as Sampling
from taciturn.spec.sampling import SynthesisSpec as SynthesisSpec
from taciturn.spec.training import FitSpec as FitSpec
from taciturn.spec.training import Method as Method
from taciturn.spec.training import Objective as Objective
from taciturn.spec.training import PerformanceSpec as PerformanceSpec
from taciturn.spec.training import TrainingSpec as TrainingSpec
