"""Where released files are kept: local disk or an object store."""

from __future__ import annotations

from taciturn.server.models.storage.base import Store, Stored, TooLargeError
from taciturn.server.models.storage.disk import DiskStore
from taciturn.server.models.storage.objects import ObjectStore
from taciturn.server.settings import Settings

__all__ = ["DiskStore", "ObjectStore", "Store", "Stored", "TooLargeError", "open_store"]


def open_store(settings: Settings) -> Store:
    """The store that the settings name; by default `files` in the data folder."""
    if settings.storage_url is None:
        return DiskStore(settings.data_dir / "files")
    return ObjectStore(settings.storage_url)
