"use strict";
// A job's page, live: the gateway says at each tick what has changed. A hidden page listens to
// nothing; one that has lost the gateway says so and comes back by itself.
(() => {
  const board = document.getElementById("progress");
  const status = document.getElementById("live");
  const curve = document.getElementById("curve");
  const cancel = document.getElementById("cancel");
  const span = (seconds) => {
    const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
    const first = Math.max(0, units.findIndex(([, size]) => seconds >= size));
    let rest = Math.max(0, Math.floor(seconds));
    const parts = units.slice(seconds < 1 ? 3 : first).map(([unit, size]) => {
      const count = Math.floor(rest / size);
      rest -= count * size;
      return `${count} ${unit}`;
    });
    return parts.slice(0, 2).join(" ");
  };
  const tick = () => {
    for (const text of document.querySelectorAll("[data-since]")) {
      text.textContent = span((Date.now() - new Date(text.dataset.since)) / 1000);
    }
  };
  tick();
  setInterval(tick, 1000);
  if (!board?.dataset.live) return;

  const say = (...parts) => status.replaceChildren(...parts);
  const stages = (data) => {
    // A new state changes the whole page; not all pages load at once.
    if (data.sequence > Number(board.dataset.sequence) && data.state !== board.dataset.state) {
      setTimeout(() => location.reload(), 1000 * Math.random());
    }
    const open = board.querySelector("details")?.open;
    board.innerHTML = data.html;
    if (open) board.querySelector("details").open = true;
    document.dispatchEvent(new Event("htmx:after:swap"));
    tick();
  };
  let newest = -1;
  const figures = (data) => {
    for (const text of document.querySelectorAll("[data-figure]")) {
      text.textContent = data.texts[text.dataset.figure] ?? text.textContent;
    }
    for (const bar of document.querySelectorAll("[data-width]")) {
      bar.setAttribute("width", data.widths[bar.dataset.width]);
    }
    cancel?.setAttribute("hx-confirm", data.cancel);
    if (!curve || !data.point) return;
    if (newest < 0) newest = JSON.parse(curve.dataset.chart).x.values.at(-1) ?? -1;
    if (data.point[0] <= newest) return;
    newest = data.point[0];
    window.charts?.add(curve, data.point[0], [data.point[1]]);
  };

  let source;
  const later = (seconds) => setTimeout(() => { if (!document.hidden) open(); }, 1000 * seconds);
  const link = (path, text) => Object.assign(document.createElement("a"), { href: path, textContent: text });
  const lost = async () => {
    const path = location.pathname;
    try {
      const answer = await fetch(`${path}/progress`, { headers: { "HX-Request": "true", Accept: "text/html" } });
      if (answer.status === 401) return say("Your session has ended. ", link(`/sign-in?next=${path}`, "Sign in again"));
      if (answer.status === 403 || answer.status === 404) return say("You may no longer see this job.");
      if (answer.headers.get("HX-Refresh")) return location.reload();
      if (answer.ok) stages({ html: await answer.text() });
    } catch { /* the gateway is away */ }
    say("Not connected; trying again.");
    later(10);
  };
  const open = () => {
    source?.close();
    source = new EventSource(board.dataset.live);
    source.onopen = () => say();
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) lost();
      else say("Connecting again.");
    };
    source.addEventListener("stages", (event) => stages(JSON.parse(event.data)));
    source.addEventListener("figures", (event) => figures(JSON.parse(event.data)));
    source.addEventListener("over", () => {
      source.close();
      setTimeout(() => location.reload(), 2000 * Math.random());  // not all pages at once
    });
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close();
    else open();
  });
  addEventListener("pagehide", () => source?.close());
  if (!document.hidden) open();
})();
