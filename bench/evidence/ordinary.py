"""Ordinary fine-tuning, as well as it can be done: what a private fit is compared with.

A plain loop that shares nothing with the private engine: AdamW, shuffled batches of records, the
mean over their tokens. After every half of an epoch the model is judged on texts that are not
trained on; the best weights are kept, and a run ends once they were not bettered for a whole epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from evidence.scores import Score
from taciturn.data.tokens.store import TokenizedDataset, TokenizedRecord
from taciturn.engine.model.adapter import quiet_peft
from taciturn.engine.training.batch import collate

_WARM_UP = 0.05
_JUDGED_PER_EPOCH = 2
_PARTS = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of fine-tuning.

    Attributes:
        method: "full", or "lora" on every linear layer with `rank`.
        rate: peak learning rate; it falls to zero in a line over `epochs`.
        records: of one batch.
    """

    method: str
    rate: float
    epochs: int = 3
    rank: int | None = None
    records: int = 16

    def as_key(self) -> dict[str, Any]:
        """For a record's key."""
        return asdict(self)


Judge = Callable[[nn.Module], Score]


def attach(model: Any, setting: Setting, seed: int) -> Any:
    """The model with what the setting trains, and that alone, made trainable."""
    if setting.method == "full":
        return model.requires_grad_(True)
    config = LoraConfig(
        r=setting.rank or 16,
        lora_alpha=2 * (setting.rank or 16),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def train(
    model: Any,
    data: TokenizedDataset,
    setting: Setting,
    judge: Judge,
    folder: Path,
    seed: int,
    *,
    autocast: bool = False,
    minutes: float = 10,
) -> dict[str, Any]:
    """Train, or go on with what a killed process left in `folder`; returns the record of it.

    Args:
        model: from `attach`.
        data: all records; whose they are plays no part.
        folder: holds `best.pt`, `last.pt` and, until the run is over, a checkpoint every so many
            `minutes`.
        autocast: matrix products in bfloat16; weights stay in float32.
    """
    run = _Run(model, setting, seed, folder, autocast)
    records = [record for unit in range(data.n_units) for record in data.records(unit)]
    run.open(records)
    while not run.over:
        saved = time.monotonic()
        for batch in run.rest_of_part(records):
            run.learn(batch)
            if time.monotonic() - saved > 60 * minutes:
                run.save()
                saved = time.monotonic()
        run.judged(judge)
        run.save()
    return run.close()


def keep(model: nn.Module, folder: Path) -> None:
    """Write what was trained as the best weights in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_weights(model), folder / ".best.pt")
    (folder / ".best.pt").replace(folder / "best.pt")


def restore(model: Any, folder: Path, which: str = "best") -> Any:
    """Put `best` or `last` weights into a model from `attach`."""
    _install(model, torch.load(folder / f"{which}.pt", weights_only=True))
    return model.eval()


def add_gradients(
    model: Any, records: Sequence[TokenizedRecord], *, autocast: bool = False
) -> None:
    """Add the gradient of the mean over all tokens of these records to the parameters'.

    It is made of parts of records of much the same length, which leaves less padding.
    """
    ordered = sorted(records, key=lambda record: len(record.input_ids))
    shares = np.array_split(np.arange(len(ordered)), _PARTS)
    parts = [_with_targets([ordered[at] for at in share]) for share in shares if len(share)]
    tokens = sum(int((targets_BT[:, 1:] >= 0).sum()) for _, targets_BT in parts)
    device = next(model.parameters()).device
    for ids_BT, targets_BT in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits_BTV = model(input_ids=ids_BT.to(device), use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1).float(),
            targets_BT[:, 1:].flatten().to(device),
            reduction="sum",
        )
        (loss / tokens).backward()


def _with_targets(records: Sequence[TokenizedRecord]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, T], and the same as targets [B, T]: -100 where there is none."""
    longest = max(len(record.input_ids) for record in records)
    batch = collate([(record, 0) for record in records], 1, longest)
    ids_BT = batch.input_ids_BT
    return ids_BT, torch.where(batch.loss_weights_BT > 0, ids_BT, -100)


class _Run:
    """A run's state: weights, moments, where it is, and what was found so far."""

    def __init__(
        self, model: Any, setting: Setting, seed: int, folder: Path, autocast: bool
    ) -> None:
        self.model, self.setting, self.folder, self.autocast = model, setting, folder, autocast
        self._seed = seed
        own = [each for each in model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(own, lr=setting.rate, weight_decay=0.0)
        self.step, self.over = 0, False
        self._judged: list[dict[str, float]] = []
        self._seconds = 0.0

    def open(self, records: list[TokenizedRecord]) -> None:
        """Go on from the checkpoint, if there is one."""
        self._batches = max(1, -(-len(records) // self.setting.records))
        self._since = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "checkpoint.pt"
        if path.is_file():
            saved = torch.load(path, weights_only=True)
            _install(self.model, saved["weights"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step, self.over, self._judged, self._seconds = saved["run"]

    def rest_of_part(self, records: list[TokenizedRecord]) -> Iterator[list[TokenizedRecord]]:
        """The batches up to where the model is judged next."""
        marks = {
            -(-self._batches * part // _JUDGED_PER_EPOCH)
            for part in range(1, _JUDGED_PER_EPOCH + 1)
        }
        epoch, done = divmod(self.step, self._batches)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(records))
        size = self.setting.records
        end = min(mark for mark in marks if mark > done)
        for number in range(done, end):
            yield [records[index] for index in order[number * size : (number + 1) * size]]

    def learn(self, records: list[TokenizedRecord]) -> None:
        """One step: the mean over all tokens of these records."""
        self.model.eval()  # without dropout, as the private fit
        add_gradients(self.model, records, autocast=self.autocast)
        for group in self._optimizer.param_groups:
            group["lr"] = self.setting.rate * self._factor()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _factor(self) -> float:
        """Up in a line, then down to zero."""
        steps = self._batches * self.setting.epochs
        warm = max(1, round(_WARM_UP * steps))
        return min((self.step + 1) / warm, (steps - self.step) / max(1, steps - warm))

    def judged(self, judge: Judge) -> None:
        """Judge the weights; keep them if they are the best, end if others were for an epoch."""
        self._pause()
        with torch.no_grad():
            found = judge(self.model)
        self._since = time.monotonic()  # judging is no part of fitting
        best = min((each["nats"] for each in self._judged), default=float("inf"))
        self._judged.append({"epoch": self.step / self._batches, **found.as_row()})
        print(f"    epoch {self.step / self._batches:.1f}: {found.nats:.4f}", flush=True)
        if found.nats < best:
            self._write("best.pt", _weights(self.model))
        nats = [each["nats"] for each in self._judged]
        behind = len(nats) - 1 - nats.index(min(nats))
        done = self.step >= self._batches * self.setting.epochs
        self.over = done or behind >= _JUDGED_PER_EPOCH

    def save(self) -> None:
        """A checkpoint; it replaces the one before at once."""
        self._pause()
        run = (self.step, self.over, self._judged, self._seconds)
        state = {"weights": _weights(self.model), "optimizer": self._optimizer.state_dict()}
        self._write("checkpoint.pt", {**state, "run": run})

    def close(self) -> dict[str, Any]:
        """What is kept of a run that is over: its best and its last weights, and its record."""
        self._write("last.pt", _weights(self.model))
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        best = min(self._judged, key=lambda each: each["nats"])
        trained = sum(each.numel() for each in self.model.parameters() if each.requires_grad)
        return {
            "dev": {name: value for name, value in best.items() if name != "epoch"},
            "best_epoch": best["epoch"],
            "curve": [(each["epoch"], each["nats"]) for each in self._judged],
            "trained": trained,
            "minutes": self._seconds / 60,
        }

    def _pause(self) -> None:
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now

    def _write(self, name: str, value: Any) -> None:
        partial = self.folder / f".{name}"
        torch.save(value, partial)
        partial.replace(self.folder / name)


def _weights(model: nn.Module) -> dict[str, Any]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def _install(model: nn.Module, weights: dict[str, Any]) -> None:
    own = dict(model.named_parameters())
    for name, value in weights.items():
        own[name].copy_(value)


def search(
    run: Callable[[Setting], float], first: Sequence[Setting], *, epochs: bool = True
) -> Setting:
    """The best setting by `run`, which says nats on dev; it is not asked for one twice.

    From each of `first`, the rate is raised and lowered for as long as that is better; then, of the
    best of all, the epochs. So no best one is at the edge of what was tried.
    """
    found: dict[Setting, float] = {}

    def worth(setting: Setting) -> float:
        if setting not in found:
            found[setting] = run(setting)
        return found[setting]

    for start in first:
        _climb(worth, start, lambda each: _at_rate(each, 10**0.5))
        _climb(worth, start, lambda each: _at_rate(each, 10**-0.5))
    if epochs:
        best = min(found, key=found.__getitem__)
        _climb(worth, best, lambda each: replace(each, epochs=2 * each.epochs))
        _climb(worth, best, lambda each: replace(each, epochs=max(1, each.epochs - 1)))
    return min(found, key=found.__getitem__)


def _climb(
    worth: Callable[[Setting], float], start: Setting, further: Callable[[Setting], Setting]
) -> None:
    at = start
    while (following := further(at)) != at and worth(following) < worth(at):
        at = following


def _at_rate(setting: Setting, by: float) -> Setting:
    return replace(setting, rate=float(f"{setting.rate * by:.2g}"))
