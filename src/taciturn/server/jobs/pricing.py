"""Plan and price of a job, from public facts alone: what is reserved is what runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from dp_accounting.dp_event import DpEvent

from taciturn.accounting.calibrate import check_delta, noise_multiplier
from taciturn.accounting.compose import epsilon as epsilon_of
from taciturn.accounting.events import dpsgd_event
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import Speed, TrainingPlan, make_plan
from taciturn.planning.release import plan_evaluation
from taciturn.reports.privacy import BASE_POLICY, policy_of
from taciturn.server.context import Gateway
from taciturn.server.jobs.terms import SubmittedRequest, Terms
from taciturn.server.ledger import Room, room
from taciturn.spec import FitSpec
from taciturn.wire.jobs import Part, RemoteEvaluate, RemoteFit, RemoteSample
from taciturn.wire.values import PolicyLine

_HALVINGS = 12
_NOISIEST = 1e4

Reason = Literal["no_guarantee", "exceeds_grant"]


@dataclass(frozen=True, slots=True)
class Price:
    """A job's plan and what it costs.

    Attributes:
        plan: the TrainingPlan of a fit; of a release about rows its noise; public.
        steps: how often the mechanism runs; 0 for a job that costs nothing.
        event: what is reserved; None without cost or without guarantee.
        unlimited: it asks for no guarantee at all.
    """

    plan: dict[str, Any]
    policy: PolicyLine
    sampling_probability: float = 1.0
    noise_multiplier: float = math.inf
    steps: int = 0
    epsilon: float | None = None
    delta: float | None = None
    unlimited: bool = False

    @property
    def event(self) -> DpEvent | None:
        """Event that is reserved; None for a job that costs nothing, or has no price."""
        return self.event_at(self.noise_multiplier) if self.steps else None

    def event_at(self, noise: float) -> DpEvent:
        """The same job with another noise multiplier."""
        return dpsgd_event(
            sampling_probability=self.sampling_probability, noise_multiplier=noise, steps=self.steps
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decision on a job: whether there is room for it now.

    Attributes:
        grants: what it would be reserved against, besides the joint budget.
        reason: why two people have to approve first; None if not.
        admitted: it needs no more room than there is, in the joint budget at least.
        share_of_budget, share_of_grant: of the job by itself.
        left_of_budget, left_of_grant: shares that are neither spent nor held now.
        left_of_budget_after, left_of_grant_after: the same with this job, below 0 without room.
    """

    admitted: bool
    grants: tuple[str, ...] = ()
    reason: Reason | None = None
    share_of_budget: float | None = None
    share_of_grant: float | None = None
    left_of_budget: float | None = None
    left_of_grant: float | None = None
    left_of_budget_after: float | None = None
    left_of_grant_after: float | None = None


def units_of(units: int, part: Part | None) -> int:
    """The declared number of units of a part: public, and never counted."""
    if part is None:
        return units
    share = part.test_share if part.side == "test" else 1 - part.test_share
    return max(1, round(units * share))


def price(request: SubmittedRequest, terms: Terms, speed: Speed | None = None) -> Price:
    """Plan and price a job.

    Args:
        speed: what a fit's max_minutes is reckoned with.

    Raises:
        PrivacyParameterError, SpecError: no plan meets what is asked.
    """
    if isinstance(request, RemoteFit):
        return _fit(request, terms, speed)
    if isinstance(request, RemoteEvaluate) and request.data is not None:
        return _release(request, terms)
    assert terms.fitted is not None
    line = terms.fitted.policy
    if isinstance(request, RemoteEvaluate) and line.kind == "DP":
        line = PolicyLine(kind="public", text=f"public text, judged by a model: {line.text}")
    if isinstance(request, RemoteSample) and request.base:
        line = PolicyLine(kind="public", text=BASE_POLICY)
    return Price({}, line)


def decide(gateway: Gateway, price: Price, terms: Terms) -> Verdict:
    """Decide whether there is room now, and whether people have to approve; nothing is held."""
    if price.unlimited:
        return Verdict(True, reason="no_guarantee")
    if price.event is None:
        return Verdict(True)
    quote = _room(gateway, terms, terms.holders).quote(price.event)
    joint = quote.fits[None]
    fitting = [holder for holder in terms.holders if quote.fits[holder]]
    # A person's own grant comes first; of several groups' one that has room.
    own = terms.holders[:1]
    if own and not own[0].startswith("user:") and fitting:
        own = (fitting[0],)
    exceeds = joint and bool(own) and not quote.fits[own[0]]
    return Verdict(
        admitted=joint,
        grants=() if exceeds else own,
        reason="exceeds_grant" if exceeds else None,
        share_of_budget=quote.needed_shares[None],
        share_of_grant=quote.needed_shares[own[0]] if own else None,
        left_of_budget=max(0.0, quote.left_shares[None]),
        left_of_grant=max(0.0, quote.left_shares[own[0]]) if own else None,
        left_of_budget_after=quote.left_after_shares[None],
        left_of_grant_after=quote.left_after_shares[own[0]] if own else None,
    )


def fitting_epsilon(gateway: Gateway, price: Price, terms: Terms) -> float | None:
    """The largest target_epsilon for which there is room now; None if there is (almost) none.

    The budget counts in Rényi costs, which hold for jobs chosen after looking at earlier ones. They
    are higher than a single job's epsilon, so a job never fits that asks for all of a budget.
    """
    if not price.steps or price.delta is None:
        return None
    low, high = math.log(price.noise_multiplier), math.log(_NOISIEST)
    room = _room(gateway, terms, terms.holders[:1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = room.quote(price.event_at(math.exp(middle))).admitted
        low, high = (low, middle) if fits else (middle, high)
    rounded = _rounded_down(epsilon_of(price.event_at(math.exp(high)), price.delta))
    return rounded if rounded >= 0.01 else None


def _room(gateway: Gateway, terms: Terms, grants: Sequence[str]) -> Room:
    return room(gateway.engine, gateway.seal_key, namespace=terms.namespace, grants=grants)


def planned_from(request: RemoteFit, terms: Terms) -> tuple[FitSpec, PublicFacts]:
    """Spec and public facts that a fit's plan follows from."""
    assert terms.dataset is not None
    assert terms.base is not None
    facts = PublicFacts(
        n_units=units_of(terms.dataset.units, request.data.part) + request.canaries,
        base_model=terms.base.name,
        base_parameters=terms.base.parameters,
        context_length=terms.base.context_length,
    )
    spec = request.fit_spec()
    if spec.private and spec.delta is None:
        # That of the namespace: then what a job says and what its budget counts go together.
        spec = spec.model_copy(update={"delta": terms.policy.budget.delta})
    return spec, facts


def _fit(request: RemoteFit, terms: Terms, speed: Speed | None) -> Price:
    assert terms.dataset is not None
    plan = _planned(*planned_from(request, terms), speed)
    if plan.privacy is None:
        line = PolicyLine(kind="no guarantee", text="no guarantee (not approved)")
        return Price(plan.model_dump(mode="json"), line, unlimited=True)
    return Price(
        plan=plan.model_dump(mode="json"),
        policy=dp_line(plan.privacy.epsilon, plan.privacy.delta, terms.dataset.unit),
        sampling_probability=plan.sampling_probability,
        noise_multiplier=plan.privacy.noise_multiplier,
        steps=plan.steps,
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
    )


def _release(request: RemoteEvaluate, terms: Terms) -> Price:
    """One Gaussian release about every unit of the part, as `assessment` makes it."""
    assert terms.dataset is not None
    assert request.data is not None
    assert request.target_epsilon is not None
    n_units = units_of(terms.dataset.units, request.data.part)
    delta = request.delta or terms.policy.budget.delta
    check_delta(delta, n_units)
    noise = _release_noise(request.target_epsilon, delta)
    event = dpsgd_event(sampling_probability=1.0, noise_multiplier=noise, steps=1)
    epsilon = epsilon_of(event, delta)
    evaluation = plan_evaluation(
        n_units,
        epsilon,
        delta,
        noise,
        counted=True,
        clusters=request.samples > 0,
        pairs=request.pairs,
    )
    plan = {"noise_multiplier": noise, **asdict(evaluation)}
    line = dp_line(epsilon, delta, terms.dataset.unit)
    return Price(plan, line, 1.0, noise, 1, epsilon, delta)


@lru_cache(maxsize=512)
def _planned(spec: FitSpec, facts: PublicFacts, speed: Speed | None) -> TrainingPlan:
    return make_plan(spec, facts, speed)


@lru_cache(maxsize=512)
def _release_noise(epsilon: float, delta: float) -> float:
    return noise_multiplier(target_epsilon=epsilon, delta=delta, sampling_probability=1.0, steps=1)


def dp_line(epsilon: float, delta: float, unit: str) -> PolicyLine:
    """The policy of something that the budget paid for."""
    short_unit = unit if len(unit) <= 200 else unit[:197] + "..."
    return PolicyLine(kind="DP", text=policy_of(epsilon, delta, short_unit))


def _rounded_down(epsilon: float) -> float:
    """Two significant digits, downwards, and never all of what would just fit."""
    if epsilon <= 0:
        return 0.0
    scale = 10.0 ** (math.floor(math.log10(epsilon)) - 1)
    return round(math.floor(epsilon / scale * (1 - 1e-3)) * scale, 6)
