"""Threads share few arenas, and free memory is returned; counted in a process of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from taciturn import malloc
from taciturn.malloc import ARENAS, keep_freed_memory, return_free_memory, share_arenas

on_glibc = pytest.mark.skipif(not malloc._is_glibc(), reason="about glibc")
SHARING = """
import ctypes, sys, threading

from taciturn.malloc import share_arenas

print(sys.argv[2] == "share" and share_arenas())
together = threading.Barrier(9)

def hold():
    kept = [bytes(10_000) for _ in range(100)]
    together.wait()
    together.wait()
    del kept

threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
together.wait()
"""
RETURNING = """
from pathlib import Path

from taciturn.malloc import return_free_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024

kept = [bytes(2000) for _ in range(50_000)]
pinned = bytes(2000)  # after all of them: the end of the heap is not free
kept = None
before = resident_mb()
assert return_free_memory()
print(before - resident_mb())
"""
KEEPING = """
import ctypes
from pathlib import Path

from taciturn.malloc import keep_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024

assert keep_freed_memory()
before = resident_mb()
block = bytearray(2**26)
del block
print(resident_mb() - before)
"""


def outcome(program: str, *arguments: str, **variables: str) -> str:
    environment = {name: text for name, text in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment | variables,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


CHOICES = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


@on_glibc
def test_threads_share_arenas_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    def arenas(how: str, **variables: str) -> tuple[str, int]:
        path = tmp_path / "malloc.xml"
        shared = outcome(SHARING, str(path), how, **variables)
        return shared, path.read_text().count("<heap nr=")

    shared, alone = arenas("")
    assert shared == "False"
    assert alone > ARENAS
    assert arenas("share") == ("True", ARENAS)
    assert arenas("share", MALLOC_ARENA_MAX="4") == ("False", 4)


@on_glibc
def test_a_gateway_returns_what_is_free_and_a_fit_keeps_it() -> None:
    assert float(outcome(RETURNING)) > 80
    assert float(outcome(KEEPING)) > 60


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not share_arenas()
    assert not return_free_memory()
    assert not keep_freed_memory.__wrapped__()
