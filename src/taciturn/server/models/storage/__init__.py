"""Stores of released files: local disk or an object store."""

from __future__ import annotations

from taciturn.server.models.storage.base import FileStore, FileTooLargeError, Stored
from taciturn.server.models.storage.disk import DiskStore
from taciturn.server.models.storage.objects import ObjectStore
from taciturn.server.settings import Settings

__all__ = ["DiskStore", "FileStore", "FileTooLargeError", "ObjectStore", "Stored", "open_store"]


def open_store(settings: Settings) -> FileStore:
    """The store that the settings name; by default `files` in the data folder."""
    if settings.storage_url is None:
        return DiskStore(settings.data_dir / "files")
    return ObjectStore(settings.storage_url)
