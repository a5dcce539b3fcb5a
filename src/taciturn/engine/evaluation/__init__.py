"""Worth of a model: how well it predicts, how like a reference it writes, what it teaches.

Exact on public text. Figures of private units leave through `release` only, with noise.
"""

from taciturn.engine.evaluation.likelihood import (
    Likelihood,
    base_model,
    likelihood,
    log_probabilities,
)

__all__ = ["Likelihood", "base_model", "likelihood", "log_probabilities"]
