"""Prometheus reads here; at `/metrics`, as it expects."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from taciturn.server.http.access import Svc, scraper
from taciturn.server.http.blocking import Route

router = APIRouter(tags=["health"], route_class=Route)


class MetricsResponse(PlainTextResponse):
    """Prometheus' text format."""

    media_type = CONTENT_TYPE_LATEST.partition(";")[0]


@router.get("/metrics", response_class=MetricsResponse, dependencies=[Depends(scraper)])
def read_metrics(services: Svc) -> MetricsResponse:
    """Requests, latencies, jobs by state, queues; no names of people or data. For whoever shows the
    operator's TACITURN_METRICS_TOKEN."""
    return MetricsResponse(services.metrics.text())
