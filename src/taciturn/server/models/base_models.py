"""Base models that may be fitted, with the public facts that a plan is made from.

The facts are declared, for the gateway opens no model either; a worker that finds others refuses
to run. The embedded model's come from its own files.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from taciturn.embedded import TINY_MEDICAL, model_path
from taciturn.server.context import Gateway
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import Paging
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import base_models
from taciturn.server.timestamps import moment
from taciturn.wire.models import BaseModelView, NewBaseModel
from taciturn.wire.values import Page
from taciturn.wire.worker import BaseModelFacts


@dataclass(frozen=True, slots=True)
class BaseModels:
    """Keeps them."""

    gateway: Gateway

    def register_embedded(self) -> None:
        """Add the model that comes with the package, if it isn't there: at every start."""
        facts = embedded_facts()

        def work(connection: Connection) -> None:
            if not _is_registered(connection, facts.name):
                self._insert(connection, facts, None)

        self.gateway.write(work)

    def add(self, caller: Principal, new: NewBaseModel) -> BaseModelView:
        """Add one; raises ProblemError `conflict` where the name is taken by other facts."""

        def work(connection: Connection) -> None:
            if not _is_registered(connection, new.name):
                self._insert(connection, new, caller.user_id)

        self.gateway.write(work)
        base_model = self.get(new.name)
        if NewBaseModel(**base_model.model_dump(exclude={"created_at"})) != new:
            raise ProblemError(
                "conflict", f"{new.name!r} is registered with other facts; remove it first"
            )
        return base_model

    def get(self, name: str) -> BaseModelView:
        """One of them; raises ProblemError `not_found`."""
        query = select(base_models).where(base_models.c.name == name)
        row = self.gateway.read(lambda connection: connection.execute(query).first())
        if row is None:
            raise ProblemError(
                "not_found", f"there is no base model {name!r} here; an administrator can add it"
            )
        return _view(row)

    def facts(self, name: str) -> BaseModelFacts:
        """Facts that a plan is made from and the worker compares; raises ProblemError
        `not_found`."""
        return BaseModelFacts(**self.get(name).model_dump(exclude={"created_at"}))

    def list(self, paging: Paging) -> Page[BaseModelView]:
        """All of them, by name."""
        query = (
            select(base_models)
            .where(base_models.c.name > paging.name())
            .order_by(base_models.c.name)
            .limit(paging.fetch)
        )
        rows = self.gateway.read(lambda connection: connection.execute(query).all())
        return paging.page(rows, _view, lambda row: row.name)

    def remove(self, name: str) -> None:
        """Let nobody fit it any more; raises ProblemError `not_found`."""
        removal = delete(base_models).where(base_models.c.name == name)
        count = self.gateway.write(lambda connection: connection.execute(removal).rowcount)
        if count == 0:
            raise ProblemError("not_found", f"there is no base model {name!r} here")

    def _insert(self, connection: Connection, new: NewBaseModel, user_id: str | None) -> None:
        row = {**new.model_dump(), "added_by": user_id, "created_at_ms": self.gateway.now_ms()}
        connection.execute(insert(base_models).values(row))


def embedded_facts() -> NewBaseModel:
    """Facts of the embedded model, from its configuration and the header of its weights."""
    folder = model_path()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return NewBaseModel(
        name=TINY_MEDICAL,
        parameters=_parameters(folder / "model.safetensors"),
        context_length=config["max_position_embeddings"],
        vocabulary=config["vocab_size"],
    )


def _parameters(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return sum(math.prod(tensor["shape"]) for tensor in header.values())


def _is_registered(connection: Connection, name: str) -> bool:
    query = select(base_models.c.name).where(base_models.c.name == name)
    return connection.execute(query).first() is not None


def _view(row: Row[Any]) -> BaseModelView:
    return BaseModelView(
        name=row.name,
        parameters=row.parameters,
        context_length=row.context_length,
        vocabulary=row.vocabulary,
        created_at=moment(row.created_at_ms),
    )
