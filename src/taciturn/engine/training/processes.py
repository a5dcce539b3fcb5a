"""The processes that torchrun started: finding each other, agreeing, and failing together.

Without torchrun's environment variables a job is one process, and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from taciturn.engine.privacy.ranks import ALONE, Ranks
from taciturn.engine.training.torchrun import started_together
from taciturn.errors import LostProcessError, ProcessError, SpecError, TaciturnError

# Rank 0 may read a large data set while the others wait. `liveness` tells slow ones from dead ones.
_PATIENCE = timedelta(days=7)
_TEXT_BYTES = 4096


@contextmanager
def all_processes(device: torch.device) -> Iterator[Ranks]:
    """The job's processes, connected for the length of the block.

    A process group that the caller has made is used and left in place; otherwise one is made, with
    NCCL between GPUs and gloo between CPUs, and destroyed at the end.

    Raises:
        LostProcessError: another process was lost, which shows as a broken connection.
    """
    if not (started_together() or (dist.is_initialized() and dist.get_world_size() > 1)):
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    made_here = not dist.is_initialized()
    if made_here:
        _connect("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        with _lost_processes_named():
            yield Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, control)
    finally:
        dist.destroy_process_group(None if made_here else control)


@cache
def _meeting_point() -> tuple[Any, int, int]:
    """The store in which processes find each other, this rank, and their number.

    Kept as long as the process lives: where rank 0 serves the store, closing it between two fits
    would leave another process connected to the old one.
    """
    store, rank, size = next(rendezvous("env://"))
    return store, rank, size


def meet() -> tuple[int, int]:
    """Find the other processes; returns this one's rank, and their number."""
    _, rank, size = _meeting_point()
    return rank, size


def _connect(backend: str) -> None:
    store, rank, size = _meeting_point()
    # One script may fit several times; the addresses of the time before are still in the store.
    connections = store.add(f"taciturn/{rank}", 1)
    dist.init_process_group(
        backend,
        store=PrefixStore(f"taciturn/{connections}", store),
        rank=rank,
        world_size=size,
    )


@contextmanager
def _lost_processes_named() -> Iterator[None]:
    """Turn a broken connection into an error that says what it means."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise LostProcessError(
            "the connection to another process of this job broke: it stopped, or its machine did; "
            "look at what it printed, then run again with --resume"
        ) from error


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Leave the block when every process has left it; if one has failed, all fail.

    The block must not talk to other processes: a failed one would leave them waiting. Ctrl-C does
    not wait.

    Raises:
        ProcessError: another process failed; says which, and how, as far as that is public.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if ranks.size > 1:
        reports = tell(ranks, "" if failure is None else _public_words(failure))
        if failure is None and any(reports):
            rank = next(rank for rank, report in enumerate(reports) if report)
            raise ProcessError(f"process {rank} of {ranks.size} failed: {reports[rank]}")
    if failure is not None:
        raise failure


def _public_words(error: Exception) -> str:
    """Our own messages never quote a row; others' may."""
    words = type(error).__name__
    return f"{words}: {error}" if isinstance(error, TaciturnError) else words


def tell(ranks: Ranks, text: str) -> list[str]:
    """Everybody's text, by rank; cut off after 4096 bytes."""
    raw = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    rows = ranks.everybody(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in rows]


def any_process(ranks: Ranks, flag: bool) -> bool:
    """True if `flag` is true in any process; the same answer in all."""
    return any(row[0] for row in ranks.numbers([float(flag)]))


def agree(ranks: Ranks, what: str, value: str) -> None:
    """Raise SpecError in every process unless all were started with the same value."""
    if len(set(tell(ranks, value))) > 1:
        raise SpecError(
            f"the {ranks.size} processes of this job have different {what}; start all of them with "
            "the same arguments"
        )


@torch.no_grad()
def same_weights(model: nn.Module, ranks: Ranks) -> None:
    """Give every process rank 0's values of the parameters that are not plain copies of files.

    What is made here (adapters, their directions) may differ in the last bits between machines.
    Shards are left alone, and so are quantised weights, which are read from files.
    """
    if ranks.size == 1:
        return
    for name, value in model.named_parameters():
        made_here = value.requires_grad or "lora_" in name
        if made_here and not isinstance(value, DTensor):
            dist.broadcast(value.data, group=ranks.group, group_src=0)
