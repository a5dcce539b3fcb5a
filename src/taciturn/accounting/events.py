"""Privacy events: what was run, as values of `dp_accounting`, and their JSON form.

A ledger, a report and a certificate store events, never epsilons: an event can be composed with
others and re-read by another accountant, an epsilon cannot. The JSON form names the classes and
fields of `dp_accounting.dp_event`, so that an auditor needs none of our code to rebuild them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent

from taciturn.errors import GuaranteeError, PrivacyParameterError, SpecError, UnknownFieldError

MAX_DEPTH = 32
"""Events nested deeper than this are refused; ours are three deep."""


def dpsgd_event(*, sampling_probability: float, noise_multiplier: float, steps: int) -> DpEvent:
    """The event of a DP-SGD run (Abadi et al. 2016, algorithm 1): `steps` draws, each noised once.

    Args:
        sampling_probability: chance of each unit to join a step, in (0, 1].
        noise_multiplier: noise standard deviation over the l2 sensitivity, above 0.
        steps: logical steps, at least 1.

    Raises:
        PrivacyParameterError: an argument is outside its bound.
    """
    probability = _probability(sampling_probability)
    step: DpEvent = dp_event.GaussianDpEvent(_noise(noise_multiplier))
    if probability < 1:
        step = dp_event.PoissonSampledDpEvent(probability, step)
    return dp_event.SelfComposedDpEvent(step, _count(steps, "steps"))


def event_to_dict(event: DpEvent) -> dict[str, Any]:
    """The canonical JSON-able form: `type` first, then the fields in the order of their class.

    Floats are kept exactly (JSON writes the shortest text that reads back as the same float).

    Raises:
        GuaranteeError: a kind of event that taciturn does not run, so cannot promise anything for.
        SpecError: a value outside its bound.
    """
    return _to_dict(event, MAX_DEPTH)


def event_from_dict(fields: dict[str, Any]) -> DpEvent:
    """Rebuild an event from `event_to_dict`'s form; nothing is guessed or defaulted.

    Raises:
        SpecError: an unknown type, a missing field, or a value outside its bound.
        UnknownFieldError: a field that the type does not have.
    """
    return _from_dict(fields, MAX_DEPTH)


def _to_dict(event: DpEvent, depth: int) -> dict[str, Any]:
    return {"type": type(event).__name__, **_fields(event, depth)}


def _fields(event: DpEvent, depth: int) -> dict[str, Any]:
    match event:
        case dp_event.GaussianDpEvent():
            return {"noise_multiplier": _noise(event.noise_multiplier)}
        case dp_event.PoissonSampledDpEvent():
            _only_gaussian(event.event)
            probability = _probability(event.sampling_probability)
            inner = _to_dict(event.event, _deeper(depth))
            return {"sampling_probability": probability, "event": inner}
        case dp_event.SelfComposedDpEvent():
            inner = _to_dict(event.event, _deeper(depth))
            return {"event": inner, "count": _count(event.count, "count")}
        case dp_event.ComposedDpEvent():
            return {"events": [_to_dict(part, _deeper(depth)) for part in event.events]}
        case dp_event.NoOpDpEvent() | dp_event.NonPrivateDpEvent():
            return {}
    raise GuaranteeError(
        f"{type(event).__name__} is not an event that taciturn accounts for; "
        f"it knows {', '.join(_READERS)}"
    )


def _from_dict(fields: dict[str, Any], depth: int) -> DpEvent:
    if not isinstance(fields, dict):
        raise SpecError(f"an event is a mapping with a `type`, not {type(fields).__name__}")
    name = fields.get("type")
    reader = _READERS.get(name) if isinstance(name, str) else None
    if reader is None:
        raise SpecError(f"event type {name!r} is unknown; known: {', '.join(_READERS)}")
    expected, build = reader
    present = [field for field in fields if field != "type"]
    unknown = [field for field in present if field not in expected]
    if unknown:
        raise UnknownFieldError(
            f"{name} has no field {unknown[0]!r}; it has: {', '.join(expected) or 'none'}"
        )
    missing = [field for field in expected if field not in present]
    if missing:
        raise SpecError(f"{name} lacks its field {missing[0]!r}; add it")
    return build(fields, depth)


def _gaussian(fields: dict[str, Any], depth: int) -> DpEvent:
    return dp_event.GaussianDpEvent(_noise(fields["noise_multiplier"]))


def _poisson(fields: dict[str, Any], depth: int) -> DpEvent:
    inner = _from_dict(fields["event"], _deeper(depth))
    _only_gaussian(inner)
    return dp_event.PoissonSampledDpEvent(_probability(fields["sampling_probability"]), inner)


def _self_composed(fields: dict[str, Any], depth: int) -> DpEvent:
    inner = _from_dict(fields["event"], _deeper(depth))
    return dp_event.SelfComposedDpEvent(inner, _count(fields["count"], "count"))


def _composed(fields: dict[str, Any], depth: int) -> DpEvent:
    events = fields["events"]
    if not isinstance(events, list):
        raise SpecError(f"events must be a list, not {type(events).__name__}")
    return dp_event.ComposedDpEvent([_from_dict(part, _deeper(depth)) for part in events])


_READERS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], int], DpEvent]]] = {
    "GaussianDpEvent": (("noise_multiplier",), _gaussian),
    "PoissonSampledDpEvent": (("sampling_probability", "event"), _poisson),
    "SelfComposedDpEvent": (("event", "count"), _self_composed),
    "ComposedDpEvent": (("events",), _composed),
    "NoOpDpEvent": ((), lambda fields, depth: dp_event.NoOpDpEvent()),
    "NonPrivateDpEvent": ((), lambda fields, depth: dp_event.NonPrivateDpEvent()),
}


def _deeper(depth: int) -> int:
    if depth <= 1:
        raise SpecError(f"events are nested deeper than {MAX_DEPTH}; flatten them")
    return depth - 1


def _only_gaussian(event: DpEvent) -> None:
    if not isinstance(event, dp_event.GaussianDpEvent):
        raise SpecError(
            f"a PoissonSampledDpEvent must hold a GaussianDpEvent, not {type(event).__name__}; "
            "compose outside of the sampling"
        )


def _number(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise PrivacyParameterError(f"{name}={value!r} must be a finite number")


def _noise(value: object) -> float:
    noise = _number(value, "noise_multiplier")
    if noise <= 0:
        raise PrivacyParameterError(
            f"noise_multiplier={noise:g} must be above 0; without noise there is no guarantee"
        )
    return noise


def _probability(value: object) -> float:
    probability = _number(value, "sampling_probability")
    if not 0 < probability <= 1:
        raise PrivacyParameterError(
            f"sampling_probability={probability:g} must lie in (0, 1]; "
            "choose a batch of at least one unit and at most all of them"
        )
    return probability


def _count(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PrivacyParameterError(f"{name}={value!r} must be a whole number")
    if value < 1:
        raise PrivacyParameterError(f"{name}={value} must be at least 1")
    return value
