"""Pictures of every page of the console with real data, to be looked at one by one.

    python bench/console_pictures.py FOLDER             every page and role: a desk's window and a
                                                        phone's, light and dark
    python bench/console_pictures.py FOLDER --only job  pages whose address has this in it

Starts the demonstration's gateway, fits the embedded model with and without a guarantee, scores it,
has a fit wait for approval and one ended, and walks through the pages that each person may open.
Pictures have 256 colours, so that they are small enough to be kept. Ends with 1 where a page had an
error of a script, or is wider than its window.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.browser import NARROW, WIDE, Window, chromium, window
from taciturn.demo import gateway as demo
from taciturn.sdk.login import redeem_link
from taciturn.wire.jobs import JobState

UNIT = "json_extract_string(context, '$.patient_id')"
TEXT = "json_extract_string(context, '$.text') AS text"
MODEL = "taciturn/tiny-medical"
ADMIN = "ada"
PEOPLE = (*demo.PEOPLE, ADMIN)
_OWNERS = ("/register", "/policies/patients")


@dataclass
class Scene:
    """A gateway with real data.

    Attributes:
        passwords: of everybody who looks at pages.
        addresses: pages by the person who looks at them, beside those of the menu.
    """

    gateway: demo.DemoGateway
    passwords: dict[str, str]
    addresses: dict[str, list[str]] = field(default_factory=dict)


@contextmanager
def scene() -> Iterator[Scene]:
    """Start a gateway, and let people work with it for a while."""
    gateway = demo.start(n_patients=100)
    try:
        passwords = {name: gateway.password(name) for name in demo.PEOPLE}
        passwords[ADMIN] = secrets.token_urlsafe(18)
        with gateway.client("admin") as client:
            client.admin.add_user(ADMIN, ["admin"])
            redeem_link(client.admin.password_link(ADMIN).url, passwords[ADMIN])
        yield Scene(gateway, passwords, _work(gateway))
    finally:
        gateway.stop()


def _work(gateway: demo.DemoGateway) -> dict[str, list[str]]:
    olivia, pia = gateway.client("olivia"), gateway.client("pia")
    mock = [
        {"id": f"n{number}", "context": json.dumps({"text": text, "patient_id": f"P{number}"})}
        for number, text in enumerate(
            ["Mr Mock coughs since Monday.", "Mrs Sample has no fever.", "Mr Mock breathes well."],
            1,
        )
    ]
    notes = olivia.add_dataset(
        "notes",
        str(gateway.notes),
        unit=UNIT,
        namespace="patients",
        units=gateway.units,
        columns=["id", "context"],
        epsilon=10,
        delta=1e-5,
        mock=mock,
    )
    olivia.grant("patients", "user:pia", epsilon=8, delta=1e-5)
    olivia.set_policy("patients", approvers=["user:amir", "user:bea"])
    notes.wait()
    data = pia.dataset("notes").select(TEXT)
    train, _ = data.split(test=0.2)
    small: dict[str, Any] = {"text_field": "text", "method": "lora", "batch_size": 20}
    fits = [
        train.fit(MODEL, target_epsilon=epsilon, steps=steps, purpose=purpose, name=name, **small)
        for epsilon, steps, purpose, name in (
            (3.0, 4, "first try on the ward's notes", "notes-first"),
            (1.0, 8, "a stricter guarantee", "notes-strict"),
        )
    ]
    for job in fits:
        job.wait()
    model = pia.models()[0]
    pia.model(model.id).sample(["The patient"], max_new_tokens=20)
    pia.model(model.id).evaluate([json.loads(str(row["context"]))["text"] for row in mock] * 4)
    free = train.fit(
        MODEL, target_epsilon="unlimited", steps=2, purpose="compare with and without", **small
    )
    for name in ("amir", "bea"):
        client = gateway.client(name)
        approval = next(iter(client.approvals()))
        client.approve(approval.id, comment="for the comparison, on a test ward")
    free.wait()
    waiting = train.fit(
        MODEL, target_epsilon="unlimited", steps=2, purpose="once more, with more steps", **small
    )
    cancelled = train.fit(MODEL, target_epsilon=0.5, steps=2, **small)
    cancelled.cancel()
    approval = next(iter(gateway.client("amir").approvals()))
    jobs = [f"/jobs/{job.id}" for job in (fits[0], free, waiting, cancelled)]
    models = [f"/models/{model.id}" for model in pia.models()]
    assert waiting.status is JobState.AWAITING_APPROVAL
    return {
        "pia": ["/datasets/notes", "/plan?dataset=notes", *jobs, *models[:2], "/jobs/none"],
        "olivia": ["/datasets/notes", jobs[0], models[0], *_OWNERS, f"/approvals/{approval.id}"],
        "amir": [f"/approvals/{approval.id}", "/approvals?tab=decided"],
        "axel": ["/datasets/notes", models[0], "/certificates", "/audit-log?answer=refused"],
        ADMIN: ["/people/pia", "/jobs"],
    }


def walk(scene: Scene, browser: Any, who: str, folder: Path, only: str) -> list[str]:
    """Take pictures of everything that somebody may open; returns what was wrong."""
    wrong: list[str] = []
    with window(browser, scene.gateway.url) as seen:
        _sign_in(seen, who, scene.passwords[who])
        for address in _addresses(seen, scene.addresses.get(who, [])):
            if only not in address:
                continue
            for size in (WIDE, NARROW):
                seen.page.set_viewport_size({"width": size[0], "height": size[1]})
                for theme in ("light", "dark"):
                    seen.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
                    seen.page.goto(address)
                    seen.page.wait_for_timeout(400)
                    wide = seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                    if wide > 0:
                        wrong.append(f"{who} {address}: {wide} px wider than {size[0]}")
                    path = folder / f"{who}-{_name(address)}-{size[0]}-{theme}.png"
                    path.write_bytes(small_png(seen.page.screenshot(full_page=True)))
        return wrong + [f"{who}: {problem}" for problem in seen.problems]


def _sign_in(seen: Window, who: str, password: str) -> None:
    seen.page.goto("/sign-in")
    seen.page.get_by_label("Name").fill(who)
    seen.page.get_by_label("Password").fill(password)
    seen.page.get_by_role("button", name="Sign in").click()
    seen.page.wait_for_url(re.compile(r"/$"))


def _addresses(seen: Window, more: list[str]) -> list[str]:
    """Return the menu's pages, those named, and those that they link to as parts of themselves."""
    menu = "[...document.querySelectorAll('.menu a')].map((link) => link.getAttribute('href'))"
    addresses = list(dict.fromkeys([*seen.page.evaluate(menu), *more]))
    for address in list(addresses):
        seen.page.goto(address)
        links = "[...document.querySelectorAll('main a')].map((link) => link.getAttribute('href'))"
        parts = [link for link in seen.page.evaluate(links) if link.startswith(f"{address}/")]
        named = [link for link in parts if not re.search(r"[a-z]{3}_[0-9a-z]{20}$", link)]
        addresses += [
            link
            for link in named
            if "." not in link and "/export" not in link and link not in addresses
        ]
    return addresses


def _name(address: str) -> str:
    text = re.sub(r"([a-z]{3})_[0-9a-z]{15}([0-9a-z]{5})", r"\2", address)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "home"


def small_png(picture: bytes) -> bytes:
    """Return a picture with a palette: its 255 most frequent colours, others by the nearest."""
    pixels = _decoded(picture)
    height, width, _ = pixels.shape
    codes = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    colours, places, counts = np.unique(codes.ravel(), return_inverse=True, return_counts=True)
    order = np.argsort(-counts)[:255]
    palette = np.stack([colours[order] >> 16, colours[order] >> 8 & 255, colours[order] & 255], 1)
    every = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.int32)
    nearest = np.array(
        [np.argmin(((palette.astype(np.int32) - colour) ** 2).sum(1)) for colour in every],
        dtype=np.uint8,
    )
    lines = nearest[places].reshape(height, width)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1).tobytes()
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            _chunk(b"IDAT", zlib.compress(raw, 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _decoded(picture: bytes) -> np.ndarray[Any, Any]:
    """Return the pixels of a picture of Chromium's: eight bits of red, green and blue."""
    at, data = 8, b""
    width = height = bytes_per_pixel = 0
    while at < len(picture):
        (length,) = struct.unpack(">I", picture[at : at + 4])
        kind, body = picture[at + 4 : at + 8], picture[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", body[:10])
            bytes_per_pixel = {2: 3, 6: 4}[colour]
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    stride = width * bytes_per_pixel
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, stride + 1)
    pixels = np.zeros((height + 1, stride + bytes_per_pixel), np.uint8)
    for number, row in enumerate(rows):
        _unfilter(int(row[0]), row[1:], pixels[number], pixels[number + 1], bytes_per_pixel)
    image = pixels[1:, bytes_per_pixel:].reshape(height, width, bytes_per_pixel)
    return image[:, :, :3]


def _unfilter(kind: int, row: Any, above: Any, out: Any, step: int) -> None:
    """Undo a row's filter (PNG, section 9); `above` and `out` begin with an empty pixel."""
    out[step:] = row
    if kind == 2:
        out[step:] += above[step:]
    elif kind == 1:
        lanes = out[step:].reshape(-1, step)
        out[step:] = np.cumsum(lanes, axis=0, dtype=np.uint64).astype(np.uint8).ravel()
    elif kind in (3, 4):
        left, up = out.tolist(), above.tolist()
        for at in range(step, len(left)):
            a, b, c = left[at - step], up[at], up[at - step]
            guess = (a + b) // 2 if kind == 3 else _paeth(a, b, c)
            left[at] = (left[at] + guess) & 255
        out[:] = left


def _paeth(a: int, b: int, c: int) -> int:
    to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    if to_a <= to_b and to_a <= to_c:
        return a
    return b if to_b <= to_c else c


def main() -> int:
    """Take the pictures; returns 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--who", action="append", choices=PEOPLE)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with scene() as made, chromium() as browser:
        for who in arguments.who or PEOPLE:
            wrong += walk(made, browser, who, arguments.folder, arguments.only)
    print("\n".join(wrong) or "nothing was wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
