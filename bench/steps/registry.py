"""The variants by name. Imported late, so that the report and the tests work without Opacus."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from torch import nn

from steps.model import build
from steps.variants import Builder, OrdinaryStep, PlainLoop, PrivateStep, Task, Variant

PLAIN, TRAINER, ORDINARY, PRIVATE = "plain", "trainer", "ordinary", "private"
RECORD_LEVEL = "private-records"
HOOKS, GHOST = "opacus-hooks", "opacus-ghost"

LABELS = {
    PLAIN: "plain loop",
    TRAINER: "HF Trainer",
    ORDINARY: "taciturn, no DP",
    PRIVATE: "taciturn, DP",
    RECORD_LEVEL: "taciturn, DP, record level",
    HOOKS: "Opacus hooks",
    GHOST: "Opacus ghost",
}
NAMES = (PLAIN, TRAINER, ORDINARY, PRIVATE, HOOKS, GHOST)
UNIT_NAMES = (PLAIN, RECORD_LEVEL, PRIVATE, HOOKS, GHOST)
"""For units of several sequences: ours with units of one, on the same records, stands beside it."""


def make(name: str, task: Task) -> Variant:
    """A variant with a model of its own; all models start from the same weights."""
    return builder(name)(build(task.method, task.shape), task)


def builder(name: str) -> Builder:
    """The class behind a name; raises ModuleNotFoundError without Opacus, KeyError for no name."""
    if name == TRAINER:
        from steps.trainer import TrainerVariant

        return TrainerVariant
    if name in (HOOKS, GHOST):
        if importlib.util.find_spec("opacus") is None:
            raise ModuleNotFoundError("opacus is not installed: pip install 'taciturn[bench]'")
        from steps.opacus_modes import OpacusGhost, OpacusHooks

        return OpacusHooks if name == HOOKS else OpacusGhost
    if name == RECORD_LEVEL:
        return _record_level
    ours: dict[str, Builder] = {PLAIN: PlainLoop, ORDINARY: OrdinaryStep, PRIVATE: PrivateStep}
    return ours[name]


def _record_level(model: nn.Module, task: Task) -> Variant:
    return PrivateStep(model, replace(task, unit_size=1))
