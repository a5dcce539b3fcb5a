"""Formats and compressions of files by their suffix."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urlsplit

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""What a suffix says about the rows inside; those of text may end in one of COMPRESSIONS."""

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
"""Suffixes of compressed files, and what fsspec calls what they are compressed with."""


def suffix_of(path: str) -> str:
    """The suffix of a path or URL in lower case, without that of a compression."""
    name = _name(path)
    return (name.with_suffix("") if compression_of(path) else name).suffix.lower()


def compression_of(path: str) -> str | None:
    """Compression of the file at a path or URL, going by its suffix."""
    return COMPRESSIONS.get(_name(path).suffix.lower())


def _name(path: str) -> PurePosixPath:
    try:
        return PurePosixPath(urlsplit(path).path if "://" in path else path)
    except ValueError:  # brackets where a host should be
        return PurePosixPath(path)
