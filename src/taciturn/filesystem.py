"""File systems by URL: fsspec's, and Arrow's own for S3.

Arrow is here anyway and brings AWS's client with it; s3fs would pin botocore, whose requirements
exclude those of Kubernetes' client.
"""

from __future__ import annotations

import os
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper

_S3 = ("s3://", "s3a://")


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or path, and the path on it. Connects when first used.

    S3 takes its credentials, region and endpoint (AWS_ENDPOINT_URL) from where AWS's tools do.

    Raises:
        ImportError: the protocol's package is not installed.
        ValueError: nobody knows the protocol.
    """
    for prefix in _S3:
        if url.startswith(prefix):
            return _s3(), url.removeprefix(prefix)
    filesystem, path = fsspec.core.url_to_fs(os.path.expanduser(url))
    return filesystem, path


def _s3() -> Any:
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    given = {"endpoint_override": endpoint, "region": region}
    return ArrowFSWrapper(S3FileSystem(**{name: value for name, value in given.items() if value}))
