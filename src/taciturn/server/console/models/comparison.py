"""Models of one base side by side on the same prompts, their words coloured by how likely each is.

The script of the page has each model write, and the one that it is compared with score what was
written. A model is offered to those alone who may sample from it; its base comes with it.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from taciturn.server.console.models.models import usable
from taciturn.server.console.models.playground import User, longest_answer
from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Svc
from taciturn.wire.jobs import ModelView
from taciturn.wire.openai import BASE

router = APIRouter(prefix="/models", route_class=PageRoute)

_OTHERS = 30


@router.get("/{model_id}/comparison")
def read_comparison(request: Request, caller: User, services: Svc, model_id: str) -> Response:
    """Show what can be compared; answers come to the page from the API."""
    item = usable(services, caller, model_id)
    like_it = services.models.usable_like(caller, item, _OTHERS)
    return page(
        request,
        "comparison.html",
        caller,
        item=item,
        base=BASE,
        models=sorted((item, *like_it), key=_is_private),
        chosen={item.id, *_counterpart(item, like_it)},
        most=min(256, longest_answer(item.context_length)),
    )


def _is_private(model: ModelView) -> bool:
    """Order: the least protected first, beside the base."""
    return model.policy.kind == "DP"


def _counterpart(item: ModelView, like_it: tuple[ModelView, ...]) -> list[str]:
    """The newest model of the same data with privacy, if this has none, or without."""
    same = [
        other.id
        for other in like_it
        if other.namespace == item.namespace and _is_private(other) != _is_private(item)
    ]
    return same[:1]
