"""State that training changes: weights, optimiser moments, their average. Takes only private
gradients.

Everything here happens after the noise, so it is post-processing and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taciturn.engine.model.sharding import local
from taciturn.engine.privacy.types import PrivateGradient
from taciturn.errors import CheckpointError, GuaranteeError
from taciturn.planning.optimizer import OptimizerConfig


class TrainingState:
    """Weights in fp32, optimiser and average of one run.

    With `private=True` the only way to change a weight is `apply`, which takes a PrivateGradient.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, *, private: bool
    ) -> None:
        self.parameters = dict(parameters)
        self.config = config
        self.private = private
        self.step = 0
        # Of a sharded parameter, the rows of this process: optimiser and average are sharded too.
        self._own = {name: local(value.detach()) for name, value in parameters.items()}
        # Where the average is put into the model at the end, the iterate must not be in its place.
        copied = config.average_decay > 0
        self._master = {
            name: value.to(torch.float32, copy=copied) for name, value in self._own.items()
        }
        averaged = self._master if config.average_decay else {}
        self._average = {name: torch.zeros_like(value) for name, value in averaged.items()}
        self._optimizer = torch.optim.AdamW(
            list(self._master.values()),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )

    @property
    def device(self) -> torch.device:
        """Device of the trained weights."""
        return next(iter(self.parameters.values())).device

    def apply(self, private: PrivateGradient) -> None:
        """One optimiser step on a released gradient."""
        self._update(private.values)

    def apply_without_privacy(self, gradient: Mapping[str, Tensor]) -> None:
        """One optimiser step on an unprotected gradient; refused in a private run."""
        if self.private:
            raise GuaranteeError("a private run was given a gradient without noise")
        self._update(gradient)

    def _update(self, gradient: Mapping[str, Tensor]) -> None:
        for name, master in self._master.items():
            master.grad = gradient[name].to(torch.float32)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self._optimizer.step()
        for master in self._master.values():
            master.grad = None  # else it would be there while the next step needs the memory
        self.step += 1
        for name, average in self._average.items():
            average.lerp_(self._master[name], 1 - self.config.average_decay)
        self._install(self._master)

    def finish(self) -> None:
        """Put the weights to be released into the model: the average, if one is kept."""
        if not self._average or self.step == 0:
            return
        correction = 1 - self.config.average_decay**self.step
        self._install({name: value / correction for name, value in self._average.items()})

    @torch.no_grad()
    def _install(self, values: Mapping[str, Tensor]) -> None:
        for name, own in self._own.items():
            if own.data_ptr() != values[name].data_ptr():
                own.copy_(values[name])

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, flat; the step is a [1] int64 tensor.

        Of sharded parameters, this process's rows; `checkpoint.all_rows` puts them together.
        """
        out = {"step": torch.tensor([self.step])}
        for index, name in enumerate(self._master):
            out[f"master/{name}"] = self._master[name]
            if name in self._average:
                out[f"average/{name}"] = self._average[name]
            moments = self._optimizer.state_dict()["state"].get(index, {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in moments:
                    out[f"{key}/{name}"] = moments[key]
        return out

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `tensors()`; raises CheckpointError if they are of other parameters."""
        saved = {name.split("/", 1)[1] for name in tensors if name.startswith("master/")}
        if saved != set(self._master):
            raise CheckpointError(
                f"checkpoint holds {len(saved)} trained parameters, this job has "
                f"{len(self._master)} and their names differ; resume with the same settings"
            )
        self.step = int(tensors["step"])
        moments: dict[int, dict[str, Tensor]] = {}
        for index, (name, master) in enumerate(self._master.items()):
            master.copy_(tensors[f"master/{name}"])
            if name in self._average:
                self._average[name].copy_(tensors[f"average/{name}"])
            if self.step:
                moments[index] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors[f"exp_avg/{name}"].to(master.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(master.device),
                }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._install(self._master)
