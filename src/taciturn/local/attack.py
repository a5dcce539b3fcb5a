"""Attacks on a fitted model, beside the base model, which has seen none of the data.

Extraction asks the model only; membership inference looks at private rows and is for their owner.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel

from taciturn.accounting.events import event_from_dict
from taciturn.accounting.tradeoff import tradeoff
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.data.unit import unit_name, without_select
from taciturn.engine.auditing.extraction import Extraction, Question, alternatives_of, check_length
from taciturn.engine.auditing.extraction import extract as extract_from
from taciturn.engine.auditing.intervals import Floats
from taciturn.engine.auditing.membership import (
    Attack,
    AttackResult,
    Membership,
    attacked,
    check_apart,
    control_scores,
    evidence,
    scores_of,
)
from taciturn.engine.auditing.roc import Promise
from taciturn.engine.evaluation.preferences import pair_margins
from taciturn.errors import SpecError
from taciturn.local.evaluate import Subject
from taciturn.planning.plan import max_tokens, record_tokens
from taciturn.reports.privacy import PrivacyReport
from taciturn.reports.spending import check_units
from taciturn.spec import ONE_RECORD, DataSpec, ExtractSpec, MembershipSpec


def extract(subject: Subject, question: Question, spec: ExtractSpec, policy: str) -> Extraction:
    """Ask both models for a secret; see LLM.extract."""
    base = subject.base
    alternatives = alternatives_of(question, spec)
    check_length(question, base.tokenizer, spec, base.context_length)
    shared = (base.tokenizer, question, alternatives, spec, base.context_length)
    with subject.base_model() as model:
        base_result = extract_from(model, *shared)
    fitted = None if subject.fitted is None else extract_from(subject.fitted, *shared)
    return Extraction(base_result, fitted, policy, spec.confidence)


def membership(
    subject: Subject,
    members: object,
    non_members: object,
    spec: MembershipSpec,
    report: PrivacyReport | None,
    policy: str,
) -> Membership:
    """Tell members from non-members by either model; see LLM.membership."""
    if not spec.show_private:
        raise SpecError(
            "membership shows exact figures of private units, which no budget pays for; if they "
            "are yours, set show_private=True (--show-private), and do not pass them on"
        )
    data = _data_spec(spec, report)
    limit = record_tokens(data, subject.base.context_length)
    with _prepared(subject, members, non_members, data, spec.seed) as groups:
        check_apart(*groups)
        if data.pairs:
            if not isinstance(subject.fitted, PeftModel):
                raise SpecError(
                    "pairs of answers are judged by how a fitted model's adapter has moved its "
                    "base, and this model has none; give text_field"
                )
            margins = [pair_margins(subject.fitted, group, limit) for group in groups]
            return _result(
                [{"margin": group.base_U} for group in margins],
                [
                    {"margin": group.fitted_U, "reward": group.fitted_U - group.base_U}
                    for group in margins
                ],
                spec,
                _promise(report),
                policy,
            )
        with subject.base_model() as model:
            base = [evidence(model, group, limit, spec.min_k) for group in groups]
        fitted = None
        if subject.fitted is not None:
            fitted = [evidence(subject.fitted, group, limit, spec.min_k) for group in groups]
    control = [control_scores(group) for group in base]
    scores = None
    if fitted is not None:
        scores = [scores_of(*pair) for pair in zip(fitted, base, strict=True)]
    return _result(control, scores, spec, _promise(report), policy)


def _result(
    control: list[dict[Attack, Floats]],
    of_fitted: list[dict[Attack, Floats]] | None,
    spec: MembershipSpec,
    promise: Promise | None,
    policy: str,
) -> Membership:
    attacks: list[AttackResult] = []
    scores = control if of_fitted is None else of_fitted
    if of_fitted is not None:
        attacks += attacked(scores[0], scores[1], "fitted", spec.confidence, promise)
    attacks += attacked(control[0], control[1], "base", spec.confidence, None)
    counts = [int(np.isfinite(next(iter(group.values()))).sum()) for group in control]
    return Membership(
        tuple(attacks), counts[0], counts[1], spec.confidence, policy, _scores(*scores)
    )


def _scores(members: dict[Attack, Floats], non_members: dict[Attack, Floats]) -> pd.DataFrame:
    frames = [
        pd.DataFrame({str(attack): scores for attack, scores in group.items()})
        for group in (members, non_members)
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "member", np.arange(len(frame)) < len(frames[0]))
    return frame


def _data_spec(spec: MembershipSpec, report: PrivacyReport | None) -> DataSpec:
    """Return how both groups are read: as the model was trained, where the caller does not say."""
    fields = {name: getattr(spec, name) for name in DataSpec.model_fields}
    if report is None:
        return DataSpec(**fields)
    names = spec.model_fields_set
    own = without_select(report.privacy_unit)
    own_unit = None if own == ONE_RECORD else own
    if "privacy_unit" not in names:
        fields["privacy_unit"] = own_unit
    if "max_records_per_unit" not in names and report.max_records_per_unit is not None:
        fields["max_records_per_unit"] = report.max_records_per_unit
    data = DataSpec(**fields)
    if report.guarantee != "none":
        check_units([own, without_select(unit_name(data))])  # both groups may come selected
    return data


@contextmanager
def _prepared(
    subject: Subject, members: object, non_members: object, data: DataSpec, seed: int
) -> Iterator[tuple[TokenizedDataset, TokenizedDataset]]:
    limit = max_tokens(data, subject.base.context_length)
    with tempfile.TemporaryDirectory() as folder:
        inside, outside = (
            prepare(rows, data, subject.base.tokenizer, limit, Path(folder) / name, seed)
            for rows, name in ((members, "members"), (non_members, "non-members"))
        )
        yield inside, outside


def _promise(report: PrivacyReport | None) -> Promise | None:
    """The largest true positive rate that the model's events leave possible, by false positives."""
    if report is None or report.dp_event is None:
        return None
    return tradeoff(event_from_dict(report.dp_event)).true_positive_rate
