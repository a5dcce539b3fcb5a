"""The model that a job fits: adapters attached, the same in every process, and verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from taciturn.engine.model import lora
from taciturn.engine.model.compiled import compile_parts, compiler_failure
from taciturn.engine.model.determinism import computed, deterministic_kernels
from taciturn.engine.model.load import (
    LoadedModel,
    check_quantizer,
    choose_device,
    enable_checkpointing,
    reason,
)
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.output import check_causal
from taciturn.engine.model.preference import PreferenceLoss
from taciturn.engine.model.sharding import check_sharded, gradient_norms, shard
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.privacy.verification import long_public_batch, public_batch, verify
from taciturn.engine.training.memory import available_bytes
from taciturn.engine.training.microbatch import wants_checkpointing
from taciturn.engine.training.processes import same_weights, together
from taciturn.errors import ModelError, SpecError, TaciturnError
from taciturn.planning.plan import AdapterPlan, max_tokens, record_tokens
from taciturn.spec import FitSpec


def trainable(
    base: LoadedModel,
    spec: FitSpec,
    choice: AdapterPlan,
    ranks: Ranks,
    fitted: Any = None,
    text: Tensor | None = None,
) -> tuple[Any, CausalLmLoss]:
    """Attach what `choice` says to `base`; every process calls it, and all get the same weights.

    Args:
        fitted: an earlier fit's model, on `base`, to go on with instead.
        text: public token ids to learn side information from; by default the base writes some.

    Returns:
        The model to release, and its loss, whose trainable parameters are fitted.

    Raises:
        UnsupportedLayerError: per-unit gradients of this model are not exact.
        SpecError, ModelError: `choice` does not fit the model.
    """
    _check_can_go_on(spec, choice, fitted)
    if spec.private:
        check_quantizer(base.model)
    if spec.sharding == "full" and ranks.size > 1:
        with _explained(base, spec):
            return _shards(base, spec, choice, ranks, fitted, text)
    with together(ranks), _explained(base, spec):
        model = _trained_model(base, choice, fitted, text)
        _checkpoint(model, base, spec)
        if spec.compile:
            compile_parts(model, whole=not spec.private)
    same_weights(model, ranks)
    with together(ranks), _explained(base, spec):
        loss = make_loss(model, spec)
        # Now, and not when a record happens to be that long.
        loss.check_length(max_tokens(spec, base.context_length))
        if spec.private:
            _verify(loss, base, spec)
    return model, loss


def make_loss(model: nn.Module, spec: FitSpec) -> CausalLmLoss:
    """The loss that `spec.objective` names."""
    return PreferenceLoss(model, spec.beta) if spec.objective == "dpo" else CausalLmLoss(model)


def _checkpoint(model: Any, base: LoadedModel, spec: FitSpec) -> None:
    """Recompute activations where the spec says so, or where a GPU has too little room without."""
    if spec.gradient_checkpointing:
        enable_checkpointing(model)
    able = getattr(model, "supports_gradient_checkpointing", False)
    if spec.gradient_checkpointing is not None or base.device.type != "cuda" or not able:
        return
    loss, longest = make_loss(model, spec), record_tokens(spec, base.context_length)
    with deterministic_kernels(base.device) if spec.private else nullcontext():
        if computed(base.device, lambda: wants_checkpointing(loss, spec, base.vocabulary, longest)):
            enable_checkpointing(model)


def _verify(loss: CausalLmLoss, base: LoadedModel, spec: FitSpec) -> None:
    """Compare per-unit gradients with brute force, on short records and on the longest."""
    device = base.device
    short = public_batch(base.vocabulary).to(device)
    longest = long_public_batch(base.vocabulary, record_tokens(spec, base.context_length)).to(
        device
    )
    halves = sum(
        parameter.nbytes for parameter in loss.parameters() if parameter.element_size() == 2
    )
    free = available_bytes(device)
    exactly = free is None or free > 2 * halves
    with deterministic_kernels(device):
        try:
            computed(device, lambda: verify(loss, short, longest, exactly=exactly))
        except torch.OutOfMemoryError:
            if not exactly:
                raise
        else:
            return
        # No room for fp32, which the longest record takes: a public length.
        verify(loss, short, longest, exactly=False)


@contextmanager
def _explained(base: LoadedModel, spec: FitSpec) -> Iterator[None]:
    """Turn whatever a model raises while it is tried into one sentence; nothing is spent yet."""
    try:
        yield
    except TaciturnError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{base.name} does not fit into the memory of {base.device} with what is trained of "
            "it; take a smaller base, quantization, a lower r or gradient_checkpointing=True"
        ) from error
    except Exception as error:
        # A compiler that is not there shows at the first call.
        if spec.compile and isinstance(error, TorchDynamoException):
            raise compiler_failure(error) from error
        raise ModelError(
            f"{base.name} ({type(base.model).__name__}) cannot be fitted as asked: "
            f"{reason(error)}; choose other target_modules or another base"
        ) from error


def _check_can_go_on(spec: FitSpec, choice: AdapterPlan, fitted: Any) -> None:
    """Raise SpecError unless an earlier fit's model, if any, can be fitted as `choice` says."""
    if isinstance(fitted, PeftModel):
        if spec.sharding == "full":
            raise SpecError(
                "sharding='full' spreads a model before adapters are attached, and this one has "
                "its adapter; leave sharding out to fit it further"
            )
    elif fitted is not None and choice.method != "full":
        raise SpecError('a model that was fitted in full is fitted further with method="full"')


def _trained_model(base: LoadedModel, choice: AdapterPlan, fitted: Any, text: Tensor | None) -> Any:
    if isinstance(fitted, PeftModel):
        return lora.reopen(fitted, choice)
    check_causal(base.model)
    return lora.attach(base.model, choice, text)


def _shards(
    base: LoadedModel,
    spec: FitSpec,
    choice: AdapterPlan,
    ranks: Ranks,
    fitted: Any,
    text: Tensor | None,
) -> tuple[Any, CausalLmLoss]:
    """The same for a sharded model, in which every forward pass needs all processes.

    Adapters stay whole, and are verified in the sharded model. A model that is trained in full is
    verified before it is sharded, and its gradients compared after.
    """
    device, batch = choose_device(spec), public_batch(base.vocabulary)
    if choice.method == "lora":
        shard(base.model, device, ranks.size)
    model: Any = _trained_model(base, choice, fitted, text)
    if spec.gradient_checkpointing:
        enable_checkpointing(model)
    same_weights(model, ranks)
    loss = CausalLmLoss(model.get_base_model() if choice.method == "lora" else model)
    loss.check_length(max_tokens(spec, base.context_length))
    if spec.private:
        _verify(loss, base, spec)
    if choice.method == "full":
        before = gradient_norms(loss, batch.to(base.device)) if spec.private else None
        shard(model, device, ranks.size)
        if before is not None:
            check_sharded(before, gradient_norms(loss, batch.to(device)))
    return model, loss
