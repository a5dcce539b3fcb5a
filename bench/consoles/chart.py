"""A live chart in a browser: what each point costs, however many there have been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateways.load import quantile_ms
from support.browser import chromium, served, window_of
from support.gateway import GatewayWorld

LONG_MS = 50.0

_SOURCE = """
window.EventSource = class extends EventTarget {
  static CLOSED = 2;
  constructor() { super(); this.readyState = 1; window.source = this; }
  close() {}
};
"""
"""Instead of the gateway's stream, one that the measurement fills."""

_FEED = """
async (steps) => {
  const long = [], frames = [], spent = [];
  new PerformanceObserver((list) => long.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask" });
  let before = performance.now(), goes = true;
  const rest = (ms) => new Promise((go) => setTimeout(go, ms));
  await rest(200);
  long.length = 0;
  for (const end = performance.now() + 80; performance.now() < end;);
  await rest(500);
  if (long.length !== 1) throw new Error(`a long task was seen ${long.length} times, not once`);
  long.length = 0;
  const frame = (now) => {
    frames.push(now - before);
    before = now;
    if (goes) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  for (let step = 1; step <= steps; step++) {
    const data = JSON.stringify({
      texts: { steps: String(step), epsilon: String(step / steps), left: `${steps - step} s` },
      widths: { done: Math.round(1000 * step / steps) },
      point: [1000 + step, 3 * Math.sqrt(step / steps)],
      cancel: "Cancel it?",
    });
    const began = performance.now();
    window.source.dispatchEvent(new MessageEvent("figures", { data }));
    spent.push(performance.now() - began);
    await rest(0);
  }
  goes = false;
  return { long, frames, spent };
}
"""
"""Each message is a task of its own, as those of a stream are; about 200 come in a second. A long
task of the measurement's own shows that the browser tells of them."""


@dataclass(frozen=True)
class Smoothness:
    """Measured times in milliseconds.

    Attributes:
        long: durations of tasks of more than 50 ms, in which the page answers nobody.
        frames: times between two frames.
        messages: times that messages took.
    """

    long: list[float]
    frames: list[float]
    messages: list[float]

    @property
    def well(self) -> bool:
        """True if no task was long."""
        return not self.long

    def __str__(self) -> str:
        frames = [milliseconds / 1000 for milliseconds in self.frames]
        messages = [milliseconds / 1000 for milliseconds in self.messages]
        return (
            f"{len(messages)} points: {quantile_ms(messages, 0.5):.2f} ms each in the middle, "
            f"{quantile_ms(messages, 1):.1f} at most; frames every {quantile_ms(frames, 0.5):.1f} "
            f"ms, 99% within {quantile_ms(frames, 0.99):.1f}; {len(self.long)} tasks above "
            f"{LONG_MS:.0f} ms, the longest {max(self.long, default=0):.0f}"
        )


def watched(world: GatewayWorld, job: str, steps: int) -> Smoothness:
    """Open the page of a job that runs, and have it say so many steps."""
    with (
        chromium() as browser,
        served(world) as url,
        window_of(browser, url, world, "olga") as seen,
    ):
        page: Any = seen.page
        page.add_init_script(_SOURCE)
        page.goto(f"/jobs/{job}")
        page.wait_for_selector("#curve canvas")
        page.wait_for_timeout(2000)  # the page itself has been drawn
        times = page.evaluate(_FEED, steps)
        if seen.problems:
            raise RuntimeError(f"the page had problems: {seen.problems}")
        return Smoothness(times["long"], times["frames"], times["spent"])
