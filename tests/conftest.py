"""What every test stands on: no network, no GPU, one thread per process, plain fixtures."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch, transformers or datasets are imported: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # export another value to test on a GPU

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# Times on a shared machine say nothing; in CI the same examples are tried at every run.
settings.register_profile(
    "taciturn",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("taciturn")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_medical() -> Path:
    """The folder of the embedded base model taciturn/tiny-medical."""
    return ROOT / "src" / "taciturn" / "embedded" / "tiny_medical"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data beside the repository; a test that needs it is skipped without."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the shared data folder beside the repository")
    return folder
