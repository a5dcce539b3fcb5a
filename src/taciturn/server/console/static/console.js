"use strict";
// Every write carries the session's proof, which only a page of this gateway can read.
(() => {
  const cookie = (name) => document.cookie.split("; ").find((part) => part.startsWith(`${name}=`))?.slice(name.length + 1) ?? "";
  const proof = () => cookie(document.querySelector("meta[name=csrf-cookie]")?.content ?? "");
  document.addEventListener("htmx:config:request", (event) => {
    event.detail.ctx.request.headers["Taciturn-CSRF"] = proof();
  });

  // Times in the reader's own zone; the absolute time stays in the title.
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const shown = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
  const localise = (root) => {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      const seconds = (at - Date.now()) / 1000;
      const unit = units.find(([, size]) => Math.abs(seconds) >= size);
      time.title = shown.format(at);
      if (Math.abs(seconds) > 30 * 86400) time.textContent = shown.format(at);
      else time.textContent = unit ? relative.format(Math.round(seconds / unit[1]), unit[0]) : "just now";
    }
  };
  const ready = () => localise(document);
  document.addEventListener("DOMContentLoaded", ready);
  document.addEventListener("htmx:after:swap", ready);
  setInterval(ready, 30000);

  // Light and dark: the system's, until the reader chooses.
  const theme = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  const apply = (name) => {
    if (name) document.documentElement.dataset.theme = name;
  };
  apply(theme());
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-switch-theme]");
    if (!button) return;
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const next = (document.documentElement.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
    apply(next);
    document.dispatchEvent(new Event("theme"));
    try { localStorage.setItem("theme", next); } catch { /* a private window: this page alone */ }
  });

  // Sliders say their value.
  document.addEventListener("input", (event) => {
    const output = event.target.form?.querySelector(`output[for="${event.target.id}"]`);
    if (output) output.value = event.target.value;
  });
})();
