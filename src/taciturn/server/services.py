"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.server.artifacts import Artifacts, held
from taciturn.server.base_models import BaseModels
from taciturn.server.chat import Chats
from taciturn.server.completions import Completions, Desk
from taciturn.server.gateway import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.incidents import Incidents
from taciturn.server.jobs.events import Events
from taciturn.server.jobs.hub import Hub
from taciturn.server.jobs.idle import Idle
from taciturn.server.jobs.texts import Texts
from taciturn.server.model_workers import ModelWorkers
from taciturn.server.models import Models
from taciturn.server.results import Results
from taciturn.server.storage import open_store


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    directory: Directory
    events: Events
    hub: Hub
    artifacts: Artifacts
    models: Models
    model_workers: ModelWorkers
    base_models: BaseModels
    results: Results
    incidents: Incidents
    texts: Texts
    idle: Idle
    chats: Chats
    completions: Completions

    @classmethod
    def of(cls, gateway: Gateway, desk: Desk) -> Services:
        """All services on one gateway."""
        events, texts = Events(gateway), Texts()
        artifacts = Artifacts(gateway, open_store(gateway.settings), held)
        models = Models(gateway, artifacts)
        results = Results(gateway, artifacts, models)
        return cls(
            gateway=gateway,
            directory=Directory(gateway),
            events=events,
            hub=Hub(events),
            artifacts=artifacts,
            models=models,
            model_workers=ModelWorkers(gateway, models, held),
            base_models=BaseModels(gateway),
            results=results,
            incidents=Incidents(gateway),
            texts=texts,
            idle=Idle(),
            chats=Chats(artifacts),
            completions=Completions(desk, results, texts),
        )
