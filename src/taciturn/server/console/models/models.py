"""Fitted models: what each promises, what was found out about it, its files, and how to use it."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from taciturn.server.console.rendering import PageRoute, go_to, page, public_address, size
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.services import Services
from taciturn.wire.jobs import ModelView

router = APIRouter(prefix="/models", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.MODELS_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.MODELS_WRITE))]

_GROUPS = {
    "Privacy": {
        "epsilon": "Epsilon",
        "delta": "Delta, the chance that the bound does not hold",
        "privacy_unit": "Protected unit",
        "n_units": "Units, as declared",
        "max_records_per_unit": "Records of a unit, at most",
        "noise_multiplier": "Noise, in lengths of the longest unit gradient",
        "l2_clip_norm": "Length at which a unit's gradient is clipped",
        "sampling_probability": "Chance of a unit to be in a step",
        "neighbouring_relation": "Compared data sets differ by",
        "mechanism": "Mechanism",
        "accountant": "Accountant",
    },
    "Training": {
        "base_model": "Base model",
        "steps": "Steps",
        "expected_batch_size": "Units in a step, expected",
        "trainable_parameters": "Parameters that were fitted",
    },
}


@router.get("")
def read_models(request: Request, caller: Reader, services: Svc, paging: PageQuery) -> Response:
    """Show the models that the caller may know of."""
    return page(request, "models.html", caller, items=services.models.list(caller, paging))


@router.get("/{model_id}")
def read_model(request: Request, caller: Reader, services: Svc, model_id: str) -> Response:
    """Show one model."""
    item = services.models.get(caller, model_id)
    is_holder = services.models.is_held(caller, model_id)
    files = services.models.files(caller, model_id)
    return page(
        request,
        "model.html",
        caller,
        item=item,
        held=is_holder,
        usable=is_holder and may_use(caller),
        groups=_groups(item),
        factor=_factor(item.report.get("epsilon")),
        public_data=item.report.get("public_data") or (),
        files=[(file, size(file.size_bytes)) for file in files],
        total=size(sum(file.size_bytes for file in files)),
        certificate=services.certificates.read(caller, model_id),
        address=public_address(services),
    )


@router.get("/{model_id}/evidence")
def read_evidence(request: Request, caller: Reader, services: Svc, model_id: str) -> Response:
    """Show what evaluations and audits have found, and the odds of any attacker."""
    item = services.models.get(caller, model_id)
    evidence = services.evidence.of(caller, model_id)
    return page(request, "model_evidence.html", caller, item=item, evidence=evidence)


@router.post("/{model_id}/removals")
def remove_model(caller: Writer, services: Svc, model_id: str) -> Response:
    """Remove a model and its files. What it has spent stays spent."""
    services.models.remove(caller, model_id)
    return go_to("/models")


def may_use(caller: Principal) -> bool:
    """True if the caller may sample from models that are theirs."""
    return Action.MODELS_USE in caller.actions


def usable(services: Services, caller: Principal, model_id: str) -> ModelView:
    """Return a model that the caller may sample from; raises ProblemError `not_found`."""
    return services.models.usable(caller, model_id)


def _groups(item: ModelView) -> dict[str, dict[str, Any]]:
    """Figures of the report by what they are about; those that are not there are left out."""
    return {
        title: {label: item.report[name] for name, label in names.items() if item.report.get(name)}
        for title, names in _GROUPS.items()
    }


def _factor(epsilon: object) -> str | None:
    """Return how much likelier an answer can be with a unit's records than without, at most."""
    if not isinstance(epsilon, float | int):
        return None
    if epsilon > 20:
        return "a factor too large to mean anything"
    factor = math.exp(epsilon)
    digits = max(0, 2 - math.floor(math.log10(factor)))
    return f"a factor of {math.ceil(factor * 10**digits) / 10**digits:,.{digits}f}"
