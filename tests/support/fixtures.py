"""Environment, settings and fixtures of every test: no network, no GPU, one thread per process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch, transformers or datasets are imported: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # export another value to test on a GPU

import pytest
from hypothesis import HealthCheck, settings

from support import side_information

ROOT = Path(__file__).resolve().parents[2]

# Programs that tests start find this tree too, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Times on a shared machine say nothing; in CI the same examples are tried at every run.
settings.register_profile(
    "taciturn",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("taciturn")


@pytest.fixture(autouse=True)
def _side_information() -> None:
    """Fits of one base model share what follows from it alone."""
    side_information.remember()


@pytest.fixture(scope="session")
def _idle_processes() -> Iterator[list[Any]]:
    """Processes that wait for another selection, ended after the last test."""
    from taciturn.data.sql.process import SessionApart

    idle: list[Any] = []
    yield idle
    for process in idle:
        apart = SessionApart()
        apart._process = process
        apart.close()


@pytest.fixture(scope="module")
def kept_processes(_idle_processes: list[Any]) -> Iterator[None]:
    """A selection is run by a process that another selection has left in order, if there is one.

    What a process answers depends on the request alone: as it takes the next batch of a selection,
    it takes that of another. To start one loads DuckDB, which takes longer than all that a test
    asks of it. One that is in disorder is ended as ever, and not kept.
    """
    from taciturn.data.sql.process import SessionApart

    start, idle = SessionApart._started, _idle_processes

    def started(apart: SessionApart) -> Any:
        if not idle:
            return start(apart)
        apart._process = idle.pop()
        return apart._process

    def left(apart: SessionApart, *_: object) -> None:
        process, apart._process = apart._process, None
        if process is not None:
            idle.append(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SessionApart, "_started", started)
        patch.setattr(SessionApart, "__exit__", left)
        yield


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


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny_medical: Path) -> Path:
    """A folder with a random Llama of 2 layers and the embedded tokenizer: fast to train."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import taciturn.engine.model.lora  # noqa: F401  # whoever wants this model fits it

    side_information.remember()
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6144,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=160,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_medical / name, folder)
    return folder
