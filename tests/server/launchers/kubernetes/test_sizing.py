"""Which machine a job gets."""

from __future__ import annotations

from typing import Any

import pytest

from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import make_plan
from taciturn.server.launchers.base import LaunchError
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.sizing import (
    Machine,
    Needs,
    choose,
    fit_need,
    model_need,
)
from taciturn.spec import FitSpec
from taciturn.wire.jobs import RemoteFit
from taciturn.wire.machines import MachinePlan, MachineWish
from taciturn.wire.worker import BaseModelFacts

CPU = Pool(name="cpu", memory="8Gi", price_per_hour=0.1)
L4 = Pool(name="l4", gpus=1, gpu_memory="24Gi", price_per_hour=0.7)
A100 = Pool(name="a100", gpus=8, gpu_memory="80Gi", max_nodes=4, price_per_hour=30)
POOLS = (CPU, L4, A100)

TINY = BaseModelFacts(name="tiny", parameters=3_000_000, context_length=512, vocabulary=6144)
SMALL = BaseModelFacts(name="1b", parameters=1_200_000_000, context_length=8192, vocabulary=128_256)
LLAMA = BaseModelFacts(name="7b", parameters=6_738_000_000, context_length=4096, vocabulary=32_000)
HUGE = BaseModelFacts(name="70b", parameters=70_000_000_000, context_length=4096, vocabulary=32_000)


def machine(
    facts: BaseModelFacts, wish: MachineWish | None = None, *, several: bool = True, **spec: object
) -> Machine:
    asked = FitSpec(target_epsilon=3, delta=1e-5, **spec)  # type: ignore[arg-type]
    public = PublicFacts(10_000, facts.name, facts.parameters, facts.context_length)
    plan = make_plan(asked, public)
    return choose(POOLS, fit_need(plan, facts, asked), wish, several=several)


def test_the_cheapest_that_is_large_enough() -> None:
    assert machine(TINY).pool is CPU
    assert machine(SMALL) == Machine(L4, 1, 1)
    assert machine(LLAMA, gradient_checkpointing=False).pool is A100
    # Left to the machine, it recomputes activations where it has to.
    assert machine(LLAMA) == machine(LLAMA, gradient_checkpointing=True) == Machine(L4, 1, 1)


def test_more_gpus_and_machines_only_where_needed() -> None:
    assert machine(HUGE, quantization="nf4", gradient_checkpointing=True).nodes == 1
    full = machine(LLAMA, method="full", microbatch_tokens=512)
    assert (full.pool, full.gpus) == (A100, 4)
    assert machine(HUGE, gradient_checkpointing=True).processes > 1


def test_what_cannot_be_spread_is_not() -> None:
    with pytest.raises(LaunchError, match=r"no machine is large enough: about \d+ GiB"):
        machine(HUGE, several=False)


def test_a_smaller_microbatch_needs_a_smaller_machine() -> None:
    small = machine(SMALL, microbatch_tokens=256, max_tokens=256, gradient_checkpointing=True)
    large = machine(SMALL, microbatch_tokens=12_288, gradient_checkpointing=False)
    assert small.pool is L4
    assert large.pool is A100


def test_a_wish_overrides_the_estimate() -> None:
    assert machine(TINY, MachineWish(gpus=1)).pool is L4
    assert machine(TINY, MachineWish(pool="a100")) == Machine(A100, 1, 1)
    assert machine(TINY, MachineWish(gpu_memory_gib=40)).pool is A100
    assert machine(TINY, MachineWish(gpus=16)) == Machine(A100, 2, 8)
    assert machine(LLAMA, MachineWish(pool="l4")).pool is L4


def test_a_wish_that_no_pool_has() -> None:
    with pytest.raises(LaunchError, match=r"no machine has gpus=3; there are cpu \(0 GPUs\)"):
        machine(TINY, MachineWish(gpus=3))


def test_jobs_without_a_model_take_the_cheapest() -> None:
    assert choose(POOLS, None).pool is CPU


def test_sampling_needs_the_weights_and_little_else() -> None:
    assert choose(POOLS, model_need(TINY, 1024)).pool is CPU
    assert choose(POOLS, model_need(LLAMA, 4096)).pool is L4
    assert choose(POOLS, model_need(HUGE, 4096), MachineWish(pool="a100")).gpus == 1


def planned(facts: BaseModelFacts, **spec: Any) -> MachinePlan:
    """Machine that a plan says, before there is a job."""
    request = RemoteFit(model=facts.name, data={"dataset": "phee"}, target_epsilon=3, **spec)
    public = PublicFacts(10_000, facts.name, facts.parameters, facts.context_length)
    plan = make_plan(request.fit_spec().model_copy(update={"delta": 1e-5}), public)
    gateway: Any = None
    return Needs(gateway, KubernetesSettings(pools=POOLS)).planned(request, plan, facts)


def test_a_plan_says_machine_memory_and_price() -> None:
    tiny = planned(TINY)
    assert (tiny.text, tiny.price_per_hour) == ("one machine without a GPU, of the kind cpu", 0.1)
    llama = planned(LLAMA, gradient_checkpointing=False)
    assert llama.text == "one machine with one GPU, of the kind a100"
    assert (llama.gpus, llama.currency) == (1, "USD")
    assert llama.memory_bytes is not None
    assert llama.memory_bytes > 6.7e9 * 2
    wished = planned(TINY, machine=MachineWish(pool="l4"))
    assert "of the kind l4" in wished.text
    refusal = planned(HUGE)
    assert not refusal.fits
    assert "no machine is large enough" in refusal.text
