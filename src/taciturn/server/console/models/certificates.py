"""Certificates, checked by the gateway and shown step by step."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from taciturn.server.console.models.models import Reader
from taciturn.server.console.rendering import PageRoute, page
from taciturn.server.http.access import Svc

router = APIRouter(prefix="/models", route_class=PageRoute)


@router.post("/{model_id}/verifications")
def verify(request: Request, caller: Reader, services: Svc, model_id: str) -> Response:
    """Check a model's certificate, in a thread of its own: it can take some seconds."""
    steps = services.certificates.check(caller, model_id)
    return page(request, "model_verification.html", caller, steps=steps)
