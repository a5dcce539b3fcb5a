"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.server.artifacts import Artifacts, held
from taciturn.server.audit_log import AuditLog
from taciturn.server.background import Background
from taciturn.server.base_models import BaseModels
from taciturn.server.chat import Chats
from taciturn.server.completions import Completions, Desk
from taciturn.server.gateway import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.passwords import Passwords
from taciturn.server.identity.sessions import Sessions
from taciturn.server.identity.tokens import Tokens
from taciturn.server.identity.users import Users
from taciturn.server.incidents import Incidents
from taciturn.server.jobs.events import Events
from taciturn.server.jobs.hub import Hub
from taciturn.server.jobs.idle import Idle
from taciturn.server.jobs.texts import Texts
from taciturn.server.metrics import Metrics
from taciturn.server.model_workers import ModelWorkers
from taciturn.server.models import Models
from taciturn.server.results import Results
from taciturn.server.storage import open_store


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    background: Background
    metrics: Metrics
    audit_log: AuditLog
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
    users: Users
    tokens: Tokens
    logins: Logins
    sessions: Sessions

    @classmethod
    def of(cls, gateway: Gateway, desk: Desk) -> Services:
        """All services on one gateway; what they do besides requests is in `background`."""
        background, metrics, audit_log = Background(), Metrics(), AuditLog(gateway)
        directory, passwords = Directory(gateway), Passwords()
        metrics.watch(
            "taciturn_queue",
            "What waits inside the gateway.",
            "queue",
            lambda: {"audit_log": audit_log.waiting},
        )
        events, texts = Events(gateway), Texts()
        artifacts = Artifacts(gateway, open_store(gateway.settings), held)
        models = Models(gateway, artifacts)
        results = Results(gateway, artifacts, models)
        return cls(
            gateway=gateway,
            background=background,
            metrics=metrics,
            audit_log=audit_log,
            directory=directory,
            users=Users(gateway, directory, passwords),
            tokens=Tokens(gateway, directory),
            logins=Logins(gateway, directory, passwords),
            sessions=Sessions(gateway.settings),
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
