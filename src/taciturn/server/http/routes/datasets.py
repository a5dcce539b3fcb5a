"""Datasets: references to private rows, their previews, and selections tried on those; and text
that is declared public."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.datasets import (
    DatasetChange,
    DatasetView,
    DisclosureView,
    NewDataset,
    PreviewView,
    Selection,
    StatedColumns,
    SyntheticPreview,
)
from taciturn.wire.public_datasets import NewPublicDataset, PublicDatasetView
from taciturn.wire.values import Name, Page

router = APIRouter(tags=["datasets"], prefix="/datasets", route_class=Route)
public_router = APIRouter(tags=["datasets"], prefix="/public-datasets", route_class=Route)
Reader = Annotated[Principal, Depends(Requires(Action.DATASETS_READ))]
Overseer = Annotated[Principal, Depends(Requires(Action.LEDGER_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.DATASETS_WRITE))]
PublicReader = Annotated[Principal, Depends(Requires(Action.PUBLIC_DATASETS_READ))]
PublicWriter = Annotated[Principal, Depends(Requires(Action.PUBLIC_DATASETS_WRITE))]
Search = Annotated[
    str, Query(max_length=64, description="Part of the name, in capitals or not; all if empty.")
]


@router.get("")
def list_datasets(
    caller: Reader, services: Svc, paging: PageQuery, search: Search = ""
) -> Page[DatasetView]:
    """Datasets that the caller may use, owns or audits, by name."""
    datasets = services.datasets.page(caller, paging.name(), paging.fetch, search)
    return paging.page(datasets, lambda dataset: dataset, lambda dataset: dataset.name)


@router.post("", status_code=201)
def register_dataset(caller: Writer, services: Svc, new: NewDataset) -> DatasetView:
    """Register a reference to rows; a worker looks whether it can be read. The same request again
    gives the dataset that it made."""
    return services.registrations.register(new, caller)


@router.get("/{name}")
def read_dataset(caller: Reader, services: Svc, name: Name) -> DatasetView:
    """A dataset: terms, schema, state."""
    return services.datasets.read(name, caller)


@router.patch("/{name}")
def change_dataset(caller: Writer, services: Svc, name: Name, change: DatasetChange) -> DatasetView:
    """Change description or mock rows; source, unit and units never change."""
    return services.registrations.change(name, change, caller)


@router.delete("/{name}", status_code=204)
def remove_dataset(caller: Writer, services: Svc, name: Name) -> None:
    """Let nobody use it any more. What was spent stays spent, and the name stays taken."""
    services.registrations.remove(name, caller)


@router.post("/{name}/probes", status_code=202)
def probe_dataset(caller: Writer, services: Svc, name: Name) -> DatasetView:
    """Have a worker look again at schema and units."""
    return services.registrations.probe(name, caller)


@router.put("/{name}/columns")
def state_columns(caller: Writer, services: Svc, name: Name, columns: StatedColumns) -> DatasetView:
    """Say what the columns are: confirm what a worker found (`found`), or that text files have no
    header line. Nobody else is shown anything of columns before."""
    return services.registrations.state_columns(name, columns, caller)


@router.get("/{name}/preview")
def read_preview(caller: Reader, services: Svc, name: Name) -> PreviewView:
    """Rows in the shape of the real ones: invented, or written under a guarantee."""
    return services.previews.read(name, caller)


@router.put("/{name}/preview/synthetic")
def use_synthetic_preview(
    caller: Writer, services: Svc, name: Name, preview: SyntheticPreview
) -> PreviewView:
    """Show records that a fitted model has written, under the guarantee of its fit. Fitting is
    paid for once; the records are kept."""
    return services.previews.use_synthetic(name, preview, caller)


@router.delete("/{name}/preview/synthetic", status_code=204)
def drop_synthetic_preview(caller: Writer, services: Svc, name: Name) -> None:
    """Show invented rows again."""
    services.previews.drop_synthetic(name, caller)


@router.post("/{name}/selections")
def try_selection(caller: Reader, services: Svc, name: Name, selection: Selection) -> PreviewView:
    """Run row-wise SQL on the preview, at once. In a job it will run on the real rows."""
    return services.previews.select(name, selection.select, caller)


@router.get("/{name}/disclosures")
def list_disclosures(
    caller: Overseer, services: Svc, name: Name, paging: PageQuery
) -> Page[DisclosureView]:
    """Everything about a dataset that has left, and to whom, newest first; for its owner and for
    auditors."""
    return services.disclosures.page(name, caller, paging)


@public_router.get("")
def list_public_datasets(
    caller: PublicReader, services: Svc, paging: PageQuery
) -> Page[PublicDatasetView]:
    """Public data sets, by name: text without a privacy unit or a budget, which fits may learn
    from first. Everybody sees them."""
    return services.public_datasets.page(caller, paging)


@public_router.post("", status_code=201)
def register_public_dataset(
    caller: PublicWriter, services: Svc, new: NewPublicDataset
) -> PublicDatasetView:
    """Declare text public, with its licence and where it comes from. The same request again gives
    the one that it made."""
    return services.public_datasets.register(new, caller)


@public_router.get("/{name}")
def read_public_dataset(caller: PublicReader, services: Svc, name: Name) -> PublicDatasetView:
    """A public data set, also one that was removed, since models may have learned from it."""
    return services.public_datasets.read(name, caller)


@public_router.delete("/{name}", status_code=204)
def remove_public_dataset(caller: PublicWriter, services: Svc, name: Name) -> None:
    """Let no new job use it, for who declared it and for administrators; its name stays taken."""
    services.public_datasets.remove(name, caller)
