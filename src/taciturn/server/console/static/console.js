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
  const days = new Intl.DateTimeFormat(undefined, { dateStyle: "long" });
  const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
  const localise = (root) => {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      const seconds = (at - Date.now()) / 1000;
      const unit = units.find(([, size]) => Math.abs(seconds) >= size);
      time.title = shown.format(at);
      if (time.dataset.form) time.textContent = (time.dataset.form === "day" ? days : shown).format(at);
      else if (Math.abs(seconds) > 30 * 86400) time.textContent = shown.format(at);
      else time.textContent = unit ? relative.format(Math.round(seconds / unit[1]), unit[0]) : "just now";
    }
  };

  // So are fields of times. Without a script they are in UTC; what is sent always is, in a hidden field.
  const zone = shown.resolvedOptions().timeZone;
  const minute = (at) => at.toISOString().slice(0, 16);
  const localiseFields = (root) => {
    for (const field of root.querySelectorAll("input[type=datetime-local][name]")) {
      const sent = Object.assign(document.createElement("input"), { type: "hidden", name: field.name, value: field.defaultValue });
      field.removeAttribute("name");
      field.after(sent);
      const at = new Date(`${field.defaultValue}Z`);
      if (field.defaultValue) field.value = minute(new Date(at - at.getTimezoneOffset() * 60000));
      field.addEventListener("input", () => { sent.value = field.value ? minute(new Date(field.value)) : ""; });
      const words = field.closest("label").querySelector("[data-zone]");
      words.textContent = words.textContent.replace("UTC", `your time (${zone})`);
    }
  };

  // A row of a table with many columns is a card in a narrow window, whose cells say their column.
  // Roles are said, because a table that is laid out as blocks loses its own.
  const roles = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell" };
  const stack = (root) => {
    for (const table of root.querySelectorAll(".scroll:not(.short) > table")) {
      const heads = [...table.querySelectorAll("thead th")];
      if (heads.length < 4 && !table.querySelector(".digest, .path")) continue;
      table.dataset.stack = "";
      for (const part of [table, ...table.querySelectorAll("thead, tbody, tr, td, th")]) {
        part.setAttribute("role", roles[part.tagName] ?? (part.closest("thead") ? "columnheader" : "rowheader"));
        const head = part.tagName === "TD" && heads[part.cellIndex];
        if (head) part.dataset.label = head.querySelector(".hidden") ? "" : head.textContent;
      }
    }
  };
  const ready = () => { localise(document); localiseFields(document); stack(document); };
  document.addEventListener("DOMContentLoaded", ready);
  document.addEventListener("htmx:after:swap", ready);
  setInterval(ready, 30000);

  // Light and dark: the system's, until the reader chooses.
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const showTheme = () => document.querySelector("[data-switch-theme]")?.setAttribute("aria-pressed", isDark());
  if (["light", "dark"].includes(chosen())) root.dataset.theme = chosen();
  const switchTheme = () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a private window: this page alone */ }
    showTheme();
    document.dispatchEvent(new Event("theme"));
  };
  system.addEventListener("change", showTheme);
  document.addEventListener("DOMContentLoaded", showTheme);

  // The menu of a narrow window, which is open where scripts do not run.
  root.dataset.scripts = "";
  const openMenu = (button) => {
    const open = button.closest(".side").toggleAttribute("data-open");
    button.setAttribute("aria-expanded", open);
  };

  // Keys: g and the letter of a page, ? for the list.
  const letters = () => {
    const pages = new Map();
    for (const link of document.querySelectorAll(".menu a")) {
      const letter = [...link.textContent.toLowerCase()].find((one) => /[a-z]/.test(one) && !pages.has(one));
      if (letter) pages.set(letter, link);
    }
    return pages;
  };
  const element = (name, text = "") => Object.assign(document.createElement(name), { textContent: text });
  const showKeys = () => {
    const dialog = element("dialog");
    const list = element("dl");
    list.className = "facts";
    for (const [letter, link] of letters()) {
      const keys = element("dt");
      keys.append(element("kbd", "g"), " ", element("kbd", letter));
      list.append(keys, element("dd", link.textContent));
    }
    const help = element("dt");
    help.append(element("kbd", "?"));
    list.append(help, element("dd", "This list"));
    const title = element("h2", "Keys");
    title.id = "keys";
    dialog.setAttribute("aria-labelledby", "keys");
    const close = element("button", "Close");
    close.className = "quiet";
    close.addEventListener("click", () => dialog.close());
    const actions = element("p");
    actions.className = "actions";
    actions.append(close);
    dialog.append(title, list, actions);
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  };
  let going = 0;
  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest?.("input, select, textarea, dialog, [contenteditable]");
    if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "?" && document.querySelector(".menu")) showKeys();
    else if (event.key === "g") going = Date.now();
    else if (Date.now() - going < 1500) {
      going = 0;
      letters().get(event.key)?.click();
    }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.matches("[data-switch-theme]")) switchTheme();
    else if (button?.matches("[data-menu]")) openMenu(button);
    else if (button?.matches("[data-keys]")) showKeys();
  });

  // A gateway that does not answer: said once, where problems are said. Parts that ask again by
  // themselves say nothing.
  document.addEventListener("htmx:error", (event) => {
    const source = event.detail?.ctx?.sourceElement;
    const place = document.getElementById("notice");
    if (!place || source?.getAttribute?.("hx-trigger")?.includes("every")) return;
    const notice = element("div");
    notice.className = "notice";
    notice.setAttribute("role", "alert");
    notice.append(element("p", "The gateway does not answer. What you asked for may not be done: look, and try again."));
    place.replaceChildren(notice);
  });
  document.addEventListener("htmx:after:swap", () => {
    const notice = document.querySelector("#notice .notice");
    if (notice && notice.getBoundingClientRect().top < 0) notice.scrollIntoView({ block: "center" });
  });

  // What is wider or longer than its place can be scrolled by keys.
  const reach = () => {
    for (const part of document.querySelectorAll("pre, .scroll, .short")) {
      const scrolls = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
      if (scrolls) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  };
  for (const name of ["DOMContentLoaded", "htmx:after:swap", "toggle"]) document.addEventListener(name, reach, true);
  addEventListener("load", reach);
  addEventListener("resize", reach);

  // Sliders say their value.
  document.addEventListener("input", (event) => {
    const output = event.target.form?.querySelector(`output[for="${event.target.id}"]`);
    if (output) output.value = event.target.value;
  });
})();
