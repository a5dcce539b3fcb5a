"""Threads share few arenas; counted by glibc itself, in a process of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from taciturn.server import serve
from taciturn.server.allocator import ARENAS, give_back, share_arenas
from taciturn.server.bootstrap import open_gateway
from taciturn.server.settings import Settings

GLIBC = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
PROGRAM = """
import ctypes, sys, threading

from taciturn.server.allocator import share_arenas

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

GIVING = """
from pathlib import Path

from taciturn.server.allocator import give_back

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024

kept = [bytes(2000) for _ in range(50_000)]
pinned = bytes(2000)  # after all of them: the end of the heap is not free
kept = None
before = resident_mb()
assert give_back()
print(before - resident_mb())
"""

NAMES = """
import ctypes, sys

from taciturn.server.allocator import widen_names

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "top"
    )]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def in_use():
    found = libc.mallinfo2()
    return found.used + found.hblkhd

kept = [sys.intern(f"kept {number}") for number in range(70_000)]
if sys.argv[1] == "widen":
    widen_names()
before = in_use()
for number in range(50_000):
    sys.intern(f"gone {number}")
print(in_use() - before)
"""


def arenas(folder: Path, how: str, **variables: str) -> tuple[bool, int]:
    """Whether sharing was taken, and how many arenas eight threads then have."""
    found = folder / "malloc.xml"
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(found), how],
        env=clean | variables,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() == "True", found.read_text().count("<heap nr=")


@pytest.mark.skipif(not GLIBC, reason="about glibc")
def test_threads_share_arenas(tmp_path: Path) -> None:
    taken, alone = arenas(tmp_path, "")
    assert not taken
    assert alone > ARENAS
    assert arenas(tmp_path, "share") == (True, ARENAS)


@pytest.mark.skipif(not GLIBC, reason="about glibc")
def test_whoever_starts_the_gateway_may_choose(tmp_path: Path) -> None:
    taken, number = arenas(tmp_path, "share", MALLOC_ARENA_MAX="4")
    assert not taken
    assert number == 4


@pytest.mark.skipif(not GLIBC, reason="about glibc")
def test_what_is_free_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GIVING], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) > 80


@pytest.mark.skipif(not GLIBC, reason="about glibc")
@pytest.mark.parametrize(("how", "grows"), [("widen", False), ("", True)])
def test_names_that_come_and_go_take_no_more_room(how: str, grows: bool) -> None:
    command = [sys.executable, "-c", NAMES, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (int(done.stdout) > 1_000_000) == grows


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not share_arenas()
    assert not give_back()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_gateway_shares_them_before_it_has_threads(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(serve.logs, "set_up", lambda: None)
    monkeypatch.setattr(serve, "share_arenas", lambda: done.append("share"))
    monkeypatch.setattr(serve, "widen_names", lambda: done.append("widen"))
    monkeypatch.setattr(serve, "supervise", lambda *_: done.append("serve"))
    monkeypatch.setattr(serve, "_serve", lambda *_: done.append("serve"))
    serve.serve(open_gateway(Settings(data_dir=tmp_path, processes=processes)))
    assert done == ["share", "widen", "serve"]
