"""File systems by URL, fsspec's and Arrow's own for S3; and where results go on this machine.

Arrow is here anyway and brings AWS's client with it; s3fs would pin botocore, whose requirements
exclude those of Kubernetes' client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from taciturn.errors import OutputError, SpecError

RUST = "safetensors and tokenizers open folders of models by names in UTF-8 alone"

S3 = ("s3://", "s3a://")


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or path, and the path on it. Connects when first used.

    S3 takes its credentials, region and endpoint (AWS_ENDPOINT_URL) from where AWS's tools do.

    Raises:
        ImportError: the protocol's package is not installed.
        ValueError: nobody knows the protocol.
    """
    for prefix in S3:
        if url.startswith(prefix):
            return _s3(), url.removeprefix(prefix)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(os.path.expanduser(url))
    return filesystem, path


def _s3() -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings = {"endpoint_override": endpoint, "region": region}
    return ArrowFSWrapper(
        S3FileSystem(**{name: value for name, value in settings.items() if value})
    )


def local_path(value: object, name: str) -> Path:
    """A path of this machine from an argument, `~` expanded; raises SpecError if it is none."""
    if not isinstance(value, str | os.PathLike):
        raise SpecError(f"{name}={value!r:.100} is no path; give a string or pathlib.Path")
    return Path(os.path.expanduser(os.fsdecode(value)))


def is_utf8(path: Path) -> bool:
    """True if a path's bytes are text; those of the system need not be."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_output_file(path: Path, suffix: str | None = None, *, replace: bool = False) -> None:
    """Refuse a place where a file cannot be written.

    Args:
        suffix: what its name must end in.
        replace: a file that is there may be written over.

    Raises:
        SpecError, OutputError: says what is in the way.
    """
    if suffix is not None and path.suffix != suffix:
        raise SpecError(f"output {path} must end in {suffix}; choose for example result{suffix}")
    if _exists(path) and not (replace and path.is_file()):
        raise OutputError(f"{path} already exists; choose another file or remove it")
    if not path.parent.is_dir():
        raise OutputError(f"folder {path.parent} is not there; create it or choose another output")
    _check_writable(path.parent)


def check_output_folder(path: Path) -> None:
    """Refuse a place where a folder cannot be made, or cannot be written; raises OutputError."""
    if not is_utf8(path):
        raise OutputError(f"output {path} has a name that is no UTF-8; choose another: {RUST}")
    nearest = path
    while not _exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        what = "a link to nothing" if nearest.is_symlink() else "no folder"
        raise OutputError(f"output {path}: {nearest} is {what}; choose another output folder")
    _check_writable(nearest)


@contextmanager
def appearing_at_once(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into, which takes its name at the end.

    Raises:
        OutputError: it cannot be written; nothing is left.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; nothing was left") from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _exists(path: Path) -> bool:
    """True if anything has that name, a link to nothing included."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{str(path)[:200]!r} cannot be an output: {reason}; choose another"
        ) from None
    return True


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"folder {folder} cannot be written; choose another output")
