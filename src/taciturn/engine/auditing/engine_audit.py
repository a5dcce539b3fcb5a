"""The audit of this installation's engine: does it keep what it promises, at these settings?

One run (Steinke et al. 2023): canaries are in by fair coins of their own, the engine runs once, the
attacker guesses, and what he gets right becomes a lower bound of epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from taciturn.engine.auditing.bounds import Guesses, guess
from taciturn.engine.auditing.claim import DpSgdRun, epsilon_lower_bound_of_run
from taciturn.engine.auditing.gradient_canaries import Engine, EngineSettings, attack
from taciturn.engine.privacy.rng import SecureStream

# He guesses about one canary in ten, those he is surest of: near the best for 2,000 to 10,000
# canaries and epsilons of 4 to 10. Fixed, so that the confidence need not be shared.
_CANARIES_PER_GUESS = 10


@dataclass(frozen=True, slots=True)
class EngineAudit:
    """Promised epsilon and proved lower bound. Public: the canaries are invented.

    Attributes:
        run: what was audited; its sampling probability is a whole number over the canaries.
        delta: at which both epsilons are meant.
        epsilon: promised.
        epsilon_lower_bound: proved with `confidence`; more than promised where the engine is wrong.
        confidence: of the bound.
        guesses: what the attacker got right.
    """

    run: DpSgdRun
    delta: float
    epsilon: float
    epsilon_lower_bound: float
    confidence: float
    guesses: Guesses

    @property
    def refuted(self) -> bool:
        """True if the promise is shown to be false."""
        return self.epsilon_lower_bound > self.epsilon


def audit_engine(
    settings: EngineSettings,
    *,
    delta: float = 1e-5,
    canaries: int = 10_000,
    confidence: float = 0.95,
    engine: Engine | None = None,
) -> EngineAudit:
    """Attack the engine once, as one who chose all data and sees every released gradient.

    Guarantee: an engine that keeps its promise is refuted with probability at most 1 - confidence.

    Args:
        settings: the run, and how it is computed.
        delta: of the promise.
        canaries: the more, the more is proved; of 10,000 a step that draws all takes a second.
        confidence: of the bound.
        engine: what is audited; by default this installation's.

    Raises:
        ValueError: too few canaries for this sampling probability.
    """
    engine = engine or Engine()
    canaries = _whole(settings.run.sampling_probability, canaries)
    mechanism = settings.mechanism(engine, canaries)
    run = replace(settings.run, sampling_probability=mechanism.sampling_probability)
    included_M = SecureStream.fresh().bernoulli(canaries, 0.5)
    evidence_M = attack(settings, included_M, engine)
    guesses = guess(evidence_M, included_M, max(1, canaries // _CANARIES_PER_GUESS))
    bound = epsilon_lower_bound_of_run(guesses, run, delta, confidence)
    return EngineAudit(run, delta, run.epsilon(delta), bound, confidence, guesses)


def _whole(sampling_probability: float, canaries: int) -> int:
    """About so many canaries, and nearly a whole number of them expected in a step."""
    return round(round(sampling_probability * canaries) / sampling_probability) or canaries
