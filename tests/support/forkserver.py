"""Processes that start where importing has ended."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver as server
from typing import Any

# One list for all tests: the server that processes are forked from starts once, with what its first
# user asks for. The public names alone would not do, as they import the engine when they are used.
_IMPORTED = (
    "taciturn.llm",
    "taciturn.local.model",
    "taciturn.worker.job",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora",
    "datasets",
)


def context() -> Any:
    """multiprocessing's context for processes of work, not of starting Python."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def start() -> None:
    """Start the server now, so that nobody else does who asks for fewer modules."""
    context()
    server.ensure_running()
