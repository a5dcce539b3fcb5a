"use strict";
// The plan's form: sliders on a logarithmic scale beside their numbers, and the answer's state.
(() => {
  const form = document.getElementById("planning");
  const plan = document.getElementById("plan");
  if (!form || !plan) return;
  const field = (id) => document.getElementById(id);
  const again = (input) => input.dispatchEvent(new Event("input", { bubbles: true }));
  const number = (text) => Number(String(text).replace(",", "."));

  // What the plan has chosen, where a field is empty.
  const chosen = () => {
    const answer = plan.querySelector("[data-steps]")?.dataset;
    if (!answer) return {};
    const lengths = { steps: answer.steps, epochs: answer.epochs, max_minutes: answer.minutes };
    return { amount: lengths[field("length").value], batch_size: answer.batch };
  };
  const rounded = (value, whole) => (whole && value >= 1 ? String(Math.round(value)) : String(Number(value.toPrecision(2))));
  const follow = () => {
    const values = chosen();
    for (const range of form.querySelectorAll("[data-for]")) {
      const input = field(range.dataset.for);
      const planned = values[input.id];
      if (planned) input.placeholder = rounded(Number(planned), true);
      const value = number(input.value || planned || "");
      if (range === document.activeElement || !(value > 0)) continue;
      const { low, high } = range.dataset;
      range.value = Math.round((1000 * Math.log(value / low)) / Math.log(high / low));
      range.setAttribute("aria-valuetext", input.value || `${input.placeholder}, chosen for you`);
    }
  };
  const move = (range) => {
    const { low, high, whole } = range.dataset;
    const input = field(range.dataset.for);
    input.value = rounded(low * (high / low) ** (range.value / 1000), whole !== undefined);
    range.setAttribute("aria-valuetext", input.value);
  };

  form.addEventListener("input", (event) => {
    const target = event.target;
    if (target.dataset.for) move(target);
    else follow();
  }, true);
  form.addEventListener("change", (event) => {
    if (event.target.id !== "length") return;
    field("amount").name = event.target.value;
    field("amount").value = "";
    follow();
  }, true);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-clear], [data-set]");
    if (!button) return;
    const input = field(button.dataset.clear ?? button.dataset.set);
    input.value = button.dataset.value ?? "";
    again(input);
  });

  // The last answer stays where it is until the next one is there; nobody asks for a stale one.
  const busy = (state) => {
    plan.setAttribute("aria-busy", String(state));
    for (const button of plan.querySelectorAll("[hx-post]")) {
      button.dataset.was ??= String(button.disabled);
      button.disabled = state || button.dataset.was === "true";
    }
  };
  const clear = () => {
    document.getElementById("notice").replaceChildren();
    for (const text of form.querySelectorAll(".error")) text.textContent = "";
    for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  };
  form.addEventListener("htmx:before:request", (event) => { if (event.target === form) busy(true); });
  form.addEventListener("htmx:after:request", (event) => {
    if (event.target === form) clear();
  });
  form.addEventListener("htmx:finally:request", (event) => {
    if (event.target !== form) return;
    const status = event.detail.ctx.response?.status;
    if (status === undefined) return;  // a later request has taken its place
    busy(status >= 400);
    plan.setAttribute("aria-busy", "false");
    plan.classList.toggle("stale", status >= 400);
    for (const text of form.querySelectorAll(".error")) {
      if (!text.textContent.trim()) continue;
      form.querySelector(`[aria-describedby="${text.id}"]`)?.setAttribute("aria-invalid", "true");
      text.closest("details")?.setAttribute("open", "");
    }
    follow();
  });
  document.addEventListener("htmx:after:swap", (event) => {
    if (event.target.id === "dataset") again(field("target_epsilon"));
  });
  follow();
})();
