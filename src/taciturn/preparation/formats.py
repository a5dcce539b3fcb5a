"""What the suffix of a file says about the rows inside."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urlsplit

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""What a suffix says about the rows inside; .jsonl and .csv may end in one of COMPRESSIONS."""

COMPRESSIONS = (".gz", ".bz2", ".xz")


def suffix_of(path: str) -> str:
    """The suffix of a path or URL in lower case, without that of a compression."""
    name = PurePosixPath(urlsplit(path).path if "://" in path else path)
    return (name.with_suffix("") if name.suffix.lower() in COMPRESSIONS else name).suffix.lower()
