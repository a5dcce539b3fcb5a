"""Private fits by other libraries: PEFT's LoRA, AdamW, and each library's own sampler and noise.

The unit is ours in both: a unit's gradient is that of the mean, over its records, of each record's
mean loss per token, and it is clipped as one. Opacus has hooks that give a gradient for each row,
so rows of one unit are added up before its optimiser clips, which its own interface leaves to the
caller; opake differentiates a function of a unit, so its records are given as one argument.

Shapes: R records, T tokens, U units.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taciturn.data.tokens.store import TokenizedDataset, TokenizedRecord

_RECORDS = 8
"""Of a unit at most: what `LLM.fit` keeps by default."""


@dataclass(frozen=True, slots=True)
class Task:
    """A private fit, as it is given to any library.

    Attributes:
        batch: expected units of a step, which is what the noise is made for.
        drawn: expected units of a step that are computed; fewer than `batch` is SIMULATED: their
            mean gets the noise that that of `batch` units would have, and nothing is private.
        physical: units computed at once.
    """

    epsilon: float
    delta: float
    steps: int
    batch: int
    drawn: int
    clip: float
    rate: float
    physical: int = 4

    def rate_at(self, step: int) -> float:
        """Up over a tenth of the steps, then down to zero, in lines."""
        warm = max(1, self.steps // 10)
        return self.rate * min((step + 1) / warm, (self.steps - step) / (self.steps - warm + 1))


def installed(name: str) -> str | None:
    """The version of a peer, or None where it is not installed."""
    return version(name) if importlib.util.find_spec(name) is not None else None


class Units:
    """Units as padded rows."""

    def __init__(self, data: TokenizedDataset) -> None:
        self._units = [data.records(unit)[:_RECORDS] for unit in range(data.n_units)]

    def __len__(self) -> int:
        return len(self._units)

    def rows(self, drawn: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [R, T], weights of their losses [R, T], and each row's unit [R]."""
        records = [(at, each) for at, unit in enumerate(drawn) for each in self._units[unit]]
        width = max((len(each.input_ids) for _, each in records), default=2)
        ids = np.zeros((len(records), width), dtype=np.int64)
        weights = np.zeros((len(records), width), dtype=np.float32)
        for row, (at, each) in enumerate(records):
            _write(each, ids[row], weights[row])
            weights[row] /= len(self._units[drawn[at]])
        unit_of = np.array([at for at, _ in records], dtype=np.int64)
        return torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(unit_of)

    def blocks(self, drawn: Sequence[int], most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Units of similar size at a time, at most `most`: ids and weights, [U, R, T]."""
        order = sorted(drawn, key=lambda unit: (len(self._units[unit]), self._longest(unit)))
        for start in range(0, len(order), most):
            part = order[start : start + most]
            records = max(len(self._units[unit]) for unit in part)
            width = max(self._longest(unit) for unit in part)
            ids = np.zeros((len(part), records, width), dtype=np.int64)
            weights = np.zeros((len(part), records, width), dtype=np.float32)
            for at, unit in enumerate(part):
                for row, each in enumerate(self._units[unit]):
                    _write(each, ids[at, row], weights[at, row])
                weights[at] /= len(self._units[unit])
            yield torch.from_numpy(ids), torch.from_numpy(weights)

    def _longest(self, unit: int) -> int:
        return max(len(each.input_ids) for each in self._units[unit])


def _write(record: TokenizedRecord, ids_T: Any, weights_T: Any) -> None:
    length = len(record.input_ids)
    ids_T[:length] = record.input_ids
    weights_T[:length] = record.targets / max(1, int(record.targets.sum()))


def weighted_nats(logits_RTV: Tensor, ids_RT: Tensor, weights_RT: Tensor) -> Tensor:
    """The loss of some units: nats of all tokens, by the weights that `Units` gives them."""
    nats_RT = nn.functional.cross_entropy(
        logits_RTV[:, :-1].float().transpose(1, 2), ids_RT[:, 1:], reduction="none"
    )
    return (nats_RT * weights_RT[:, 1:]).sum()


def fit_opacus(model: Any, units: Units, task: Task) -> float:
    """Fit a LoRA model; returns the noise multiplier.

    `PrivacyEngine.make_private` with its hooks and its Poisson loader, `BatchMemoryManager` for
    memory, and noise by its PRV accountant.
    """
    from opacus import PrivacyEngine
    from opacus.accountants.utils import get_noise_multiplier
    from opacus.utils.batch_memory_manager import BatchMemoryManager
    from torch.utils.data import DataLoader, TensorDataset

    sigma = get_noise_multiplier(
        target_epsilon=task.epsilon,
        target_delta=task.delta,
        sample_rate=task.batch / len(units),
        steps=task.steps,
        accountant="prv",
    )
    model.train()  # its hooks ask for it; dropout is off
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its random numbers are not secure, and of its hooks
        own = [each for each in model.parameters() if each.requires_grad]
        module, optimizer, loader = PrivacyEngine(accountant="prv").make_private(
            module=model,
            optimizer=torch.optim.AdamW(own, lr=task.rate, weight_decay=0.0),
            data_loader=DataLoader(TensorDataset(torch.arange(len(units))), batch_size=task.drawn),
            noise_multiplier=sigma * task.drawn / task.batch,
            max_grad_norm=task.clip,
            poisson_sampling=True,
        )
        step = 0
        while step < task.steps:
            with BatchMemoryManager(
                data_loader=loader, max_physical_batch_size=task.physical, optimizer=optimizer
            ) as parts:
                for (drawn,) in parts:
                    for group in optimizer.param_groups:
                        group["lr"] = task.rate_at(step)
                    opacus_gradients(module, units, drawn.tolist(), own)
                    optimizer.step()
                    step += not optimizer._is_last_step_skipped
                    optimizer.zero_grad(set_to_none=True)
                    if step == task.steps:
                        break
    module.remove_hooks()
    return float(sigma)


def opacus_gradients(module: Any, units: Units, drawn: list[int], own: list[Any]) -> None:
    """Set `grad_sample` of each parameter to the units' gradients, [U, *parameter]."""
    if not drawn:
        for each in own:
            each.grad_sample = torch.zeros(0, *each.shape, device=each.device)
        return
    device = own[0].device
    ids_RT, weights_RT, unit_of_R = (part.to(device) for part in units.rows(drawn))
    logits_RTV = module(input_ids=ids_RT, use_cache=False).logits
    # Its hooks take the loss for a mean over rows, and multiply by their number.
    (weighted_nats(logits_RTV, ids_RT, weights_RT) / len(ids_RT)).backward()
    for each in own:
        by_row = each.grad_sample
        by_unit = torch.zeros(len(drawn), *each.shape, device=device, dtype=by_row.dtype)
        each.grad_sample = by_unit.index_add_(0, unit_of_R, by_row)


def fit_opake(model: Any, units: Units, task: Task) -> float:
    """Fit a LoRA model; returns the noise multiplier.

    `clipped_grad` of a unit's loss, `gaussian_noise`, `PoissonSampler`, its AdamW and accountant.
    """
    with _weak_references_once():
        import opake.accounting as accounting
        import opake.dpsgd.accounting as steps_of
        import torchopt
        from opake.dpsgd.clipping import clipped_grad
        from opake.dpsgd.noise import gaussian_noise
        from opake.dpsgd.sampling import PoissonSampler
        from opake.optimizers import adamw
        from opake.patches import apply_model_patches
        from opake.random import key
        from opake.types import clipped

    q = task.batch / len(units)
    sigma = float(
        accounting.calibrate(
            accounting.epsilon_budget(task.epsilon, delta=task.delta),
            lambda noise: steps_of.poisson(steps_of.gaussian(noise), sample_rate=q) * task.steps,
            param_min=0.05,
            param_max=1000.0,
        ).param
    )
    # The fused kernels have no rule for functions of one unit, and would run for each by itself.
    model.get_base_model().set_attn_implementation("eager")
    apply_model_patches(model)
    model.eval()
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    parameters = {name: model.get_parameter(name).detach().clone() for name in names}

    def loss(values: dict[str, Tensor], ids_RT: Tensor, weights_RT: Tensor) -> Tensor:
        logits = torch.func.functional_call(
            model, values, kwargs={"input_ids": ids_RT, "use_cache": False}
        ).logits
        return weighted_nats(logits, ids_RT, weights_RT)

    gradient, clipping = clipped_grad(
        loss, batch_argnums=(1, 2), clipping_norm=task.clip, normalize_by=task.drawn
    )
    noisy, noise = gaussian_noise(
        noise_multiplier=sigma * task.drawn / task.batch, key=key(_secret())
    )
    rate = adamw(lr=task.rate_at, weight_decay=0.0)
    state = rate.init(parameters)
    drawn = PoissonSampler(
        range(len(units)), task.drawn / len(units), n_steps=task.steps, key=key(_secret())
    )
    device = next(iter(parameters.values())).device
    for indices in drawn:
        # Each unit is in one block, so that the sum of blocks has a block's sensitivity.
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for ids, weights in units.blocks(indices, task.physical):
            part, clipping = gradient(
                parameters, ids.to(device), weights.to(device), state=clipping
            )
            total = {name: total[name] + part.pytree[name] for name in names}
        released, noise = noisy(clipped(total, max_norm=task.clip / task.drawn), noise)
        updates, state = rate.update(released, state, params=parameters, inplace=False)
        parameters = torchopt.apply_updates(parameters, _plain(updates), inplace=False)
    with torch.no_grad():
        for name, value in parameters.items():
            model.get_parameter(name).copy_(value)
    return sigma


@contextmanager
def _weak_references_once() -> Iterator[None]:
    """Let opake be imported on early versions of Python 3.11.

    Their dataclasses add a slot for weak references also where a base class has one, and fail.
    """
    original = dataclasses.dataclass
    if sys.version_info < (3, 12):
        dataclasses.dataclass = lambda *of, weakref_slot=False, **fields: original(*of, **fields)  # type: ignore[assignment]
    try:
        yield
    finally:
        dataclasses.dataclass = original


def _plain(updates: Any) -> Any:
    return getattr(updates, "pytree", updates)


def _secret() -> int:
    return int.from_bytes(np.random.SeedSequence().generate_state(2).tobytes()[:7], "little")


FITS = {"opacus": fit_opacus, "opake": fit_opake}
