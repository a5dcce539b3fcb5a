"""Time and memory that the steps of a fit would take on this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from taciturn.engine.model.determinism import deterministic_kernels
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.training.estimate import (
    FormChoice,
    Workload,
    estimate_memory,
    estimate_seconds,
    form_choices,
    measured_seconds_per_unit,
)
from taciturn.engine.training.graphs import wants_graphs
from taciturn.engine.training.memory import MemoryEstimate, available_bytes
from taciturn.engine.training.microbatch import microbatch_tokens
from taciturn.engine.training.trainable import trainable
from taciturn.malloc import keep_freed_memory
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import (
    TOKENS_PER_UNIT,
    Speed,
    TimeChoice,
    TrainingPlan,
    adapter_plan,
    make_plan,
    other_times,
    record_tokens,
)
from taciturn.spec import FitSpec


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and memory of a job on this machine.

    Attributes:
        seconds: of its steps.
        memory: of its largest microbatch, weights and optimiser.
        available_bytes: what is free on the device, None where nobody says.
        forms: how per-unit gradients would be kept.
        graphs: whether a fit would try to record its microbatches as CUDA graphs, which is not
            reckoned with here.
    """

    seconds: float
    memory: MemoryEstimate
    available_bytes: int | None
    forms: tuple[FormChoice, ...]
    graphs: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Plan of a fit, and what its steps would take on this machine.

    Attributes:
        other_times: what half, twice and four times the time would buy.
    """

    plan: TrainingPlan
    cost: Cost
    other_times: tuple[TimeChoice, ...] = ()


def estimate(base: LoadedModel, spec: FitSpec, n_units: int, tokens_per_unit: float) -> Estimate:
    """Return the plan, and what its steps would take here. Attaches adapters to `base`."""
    with exact_kernels(base, spec):
        return _estimate(base, spec, n_units, tokens_per_unit)


def _estimate(base: LoadedModel, spec: FitSpec, n_units: int, tokens_per_unit: float) -> Estimate:
    loss = attached_loss(base, spec)
    tokens = _tokens(base, spec, loss)
    speed = None if spec.max_minutes is None else measured_speed(base, spec, loss)
    facts = public_facts(base, n_units)
    plan = make_plan(spec, facts, speed)
    form = Form(spec.per_unit_gradients)
    work = Workload(tokens_per_unit, tokens, base.vocabulary, form)
    cost = Cost(
        seconds=estimate_seconds(loss, plan, work),
        memory=estimate_memory(loss, plan, work, base.device),
        available_bytes=available_bytes(base.device),
        forms=tuple(form_choices(loss, plan, work)),
        graphs=wants_graphs(spec, plan, loss),
    )
    return Estimate(plan, cost, other_times(spec, facts, plan))


def _tokens(base: LoadedModel, spec: FitSpec, loss: CausalLmLoss) -> int:
    return microbatch_tokens(loss, spec, base.vocabulary, record_tokens(spec, base.context_length))


def exact_kernels(
    base: LoadedModel, spec: FitSpec, device: torch.device | None = None
) -> AbstractContextManager[None]:
    """Return the block in which a unit's gradient is the same bits in any company.

    Args:
        device: of the processes that will share `base`; by default where it is.
    """
    if not spec.private:
        return nullcontext()
    if device is None or spec.sharding == "none":
        device = base.device
    return deterministic_kernels(device)


def attached_loss(base: LoadedModel, spec: FitSpec) -> CausalLmLoss:
    """Return the loss of `base` with new adapters, as a fit would attach them."""
    configure_cpu(spec.threads)
    choice = adapter_plan(spec, public_facts(base, n_units=1))
    return trainable(base, spec, choice, ALONE)[1]


def public_facts(base: LoadedModel, n_units: int) -> PublicFacts:
    """Return what defaults may depend on."""
    return PublicFacts(n_units, base.name, base.n_parameters, base.context_length)


def measured_speed(
    base: LoadedModel, spec: FitSpec, loss: CausalLmLoss, ranks: Ranks = ALONE
) -> Speed:
    """Measure the device with public random tokens: the speed that max_minutes is reckoned with.

    Of several processes together, the slowest counts. To be called in `exact_kernels`.
    """
    limit = record_tokens(spec, base.context_length)
    form = Form(spec.per_unit_gradients)
    tokens = microbatch_tokens(loss, spec, base.vocabulary, limit, ranks)
    work = Workload(min(TOKENS_PER_UNIT, limit), tokens, base.vocabulary, form)
    own = measured_seconds_per_unit(loss, limit, work)
    slowest = max(row[0] for row in ranks.numbers([own]))
    # Two digits: no more is reproducible, and the reason shows all of it.
    rounded = float(f"{slowest / ranks.size:.2g}")
    basis = f"measured here on public random tokens, {work.tokens_per_unit:g} of them a unit"
    return Speed(rounded, basis)


def configure_cpu(threads: int | None) -> None:
    """Set the thread count, if given, and keep freed memory for the next step."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
