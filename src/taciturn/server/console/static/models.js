"use strict";
// Models: copied snippets, a playground, and a comparison of what models hold for likely.
// Prompts and answers enter the page as text alone: nothing here reads markup.
(() => {
  const make = (name, className = "", text = "") => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== "") node.textContent = text;
    return node;
  };
  const say = (text, bad = false) => {
    const state = document.getElementById("state");
    state.textContent = text;
    state.classList.toggle("failed", bad);
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      // Without https there is no clipboard: the text is marked, to be copied by hand.
      getSelection().selectAllChildren(source);
      button.textContent = "Marked";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });

  // Requests to the API, as the reader of this page.
  const proof = () => {
    const name = document.querySelector("meta[name=csrf-cookie]").content;
    return document.cookie.split("; ").find((part) => part.startsWith(`${name}=`))?.slice(name.length + 1) ?? "";
  };
  const WORDS = {
    401: "Your session has ended. Sign in again, in another tab if you want to keep this page.",
    403: "You may not use this model.",
    404: "This model is no longer there, or no longer yours.",
    429: "Too many requests. Wait a moment, and try again.",
  };
  const failure = (status, body) => {
    const message = body?.error?.message;
    if (WORDS[status]) return new Error(WORDS[status]);
    if (status === 503) return new Error(`No worker could answer: ${message ?? "the gateway is busy"}. Try again in a moment.`);
    return new Error(message ? `Refused: ${message}` : `The gateway answered ${status}.`);
  };
  const ask = async (path, body, signal) => {
    let answer;
    try {
      answer = await fetch(`/openai/v1/${path}`, {
        method: "POST", signal, credentials: "same-origin", body: JSON.stringify(body),
        headers: { "Content-Type": "application/json", "Taciturn-CSRF": proof() },
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The gateway does not answer. Is the network there?");
    }
    if (answer.ok) return answer;
    throw failure(answer.status, await answer.json().catch(() => null));
  };
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The answer broke off before its end.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (!line.startsWith("data: ")) continue;
        const data = JSON.parse(line.slice(6));
        if (data.error) throw failure(data.error.code === "unavailable" ? 503 : 400, data);
        yield data;
      }
    }
  }
  // One run at a time, which "Stop" ends; leaving the page ends it, too.
  const runs = (form, work) => {
    const [start, stop] = [form.querySelector("[data-start]"), form.querySelector("[data-stop]")];
    let control = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (control) return;
      control = new AbortController();
      start.disabled = true;
      stop.disabled = false;
      try {
        await work(new FormData(form), control.signal);
      } catch (error) {
        if (error.name === "AbortError") say("Stopped.");
        else say(error.message, true);
      }
      control = null;
      start.disabled = false;
      stop.disabled = true;
    });
    stop.addEventListener("click", () => control?.abort());
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  };
  const options = (data) => {
    const body = { max_tokens: Number(data.get("max_tokens")), temperature: Number(data.get("temperature")) };
    if (data.get("top_p")) body.top_p = Number(data.get("top_p"));
    return body;
  };
  const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`;
  const ends = { stop: "it ended by itself", length: "cut at the longest answer" };

  const playground = (form) => {
    const kind = form.elements.kind;
    const show = () => {
      for (const node of form.querySelectorAll("[data-only]")) node.hidden = node.dataset.only !== kind.value;
    };
    if (kind) { kind.addEventListener("change", show); show(); }
    const answers = document.getElementById("answers");

    runs(form, async (data, signal) => {
      answers.replaceChildren();
      const chat = data.get("kind") === "chat";
      const count = Number(data.get("samples"));
      const cards = Array.from({ length: count }, (_, index) => {
        const card = make("section", "panel answer");
        card.append(make("h3", "", count > 1 ? `Sample ${index + 1}` : "Answer"), make("div", "said"), make("p", "muted", "Waits."));
        answers.append(card);
        return card;
      });
      for (const [index, card] of cards.entries()) {
        const [, said, note] = card.children;
        const body = { ...options(data), model: data.get("model"), stream: true, stream_options: { include_usage: true } };
        if (data.get("seed")) body.seed = Number(data.get("seed")) + index;
        if (chat) {
          body.messages = [{ role: "user", content: data.get("prompt") }];
          if (data.get("system")) body.messages.unshift({ role: "system", content: data.get("system") });
        } else {
          body.prompt = data.get("prompt");
          said.append(make("span", "prompt", body.prompt));
        }
        const text = make("span");
        said.append(text);
        const began = performance.now();
        note.textContent = "Waits for a worker.";
        if (index === 0) say("Asked. The first answer takes longer, for a worker loads the model.");
        let end = null, usage = null, policy = "";
        try {
          for await (const chunk of events(await ask(chat ? "chat/completions" : "completions", body, signal))) {
            const choice = chunk.choices[0];
            policy = chunk.taciturn?.policy?.text ?? policy;
            usage = chunk.usage ?? usage;
            if (!choice) continue;
            text.append(chat ? choice.delta.content ?? "" : choice.text);
            if (text.textContent) { note.textContent = "Writes."; say(`Writes ${count > 1 ? `sample ${index + 1} of ${count}` : ""}`.trim() + "."); }
            end = choice.finish_reason ?? end;
          }
        } catch (error) {
          note.textContent = error.name === "AbortError" ? "Stopped." : error.message;
          for (const later of cards.slice(index + 1)) later.lastChild.textContent = "Not asked.";
          throw error;
        }
        if (!text.textContent) text.append(make("em", "muted", "It wrote nothing and ended."));
        note.textContent = `${usage ? `${usage.completion_tokens} tokens, ` : ""}${ends[end] ?? ""}, ${seconds(began)}. ${policy}`;
      }
      say("Done.");
    });
  };

  // Steps of colour: how many times likelier or less likely.
  const FACTORS = [1.5, 4, 12];
  const shade = (difference) => {
    if (difference === null) return "unknown";
    const step = FACTORS.filter((factor) => Math.abs(difference) >= Math.log(factor)).length;
    return step ? `${difference > 0 ? "up" : "down"}${step}` : "";
  };
  const times = (difference) => {
    const factor = Math.exp(Math.abs(difference));
    if (factor < 1.05) return "about as likely as under the reference";
    const shown = factor >= 1000 ? "more than 1,000" : factor.toPrecision(2);
    return `${shown} times ${difference > 0 ? "likelier" : "less likely"} than under the reference`;
  };
  const nats = (value) => (value === null ? "" : value.toFixed(2));
  const percent = (value) => `${(100 * Math.exp(value)).toPrecision(2)}%`;
  const length = (text) => Array.from(text).length; // as the gateway counts: code points

  // Tokens of an answer, each with the reference's log-probability of the same token at its place.
  const aligned = (choice, prompt, reference) => {
    const first = length(prompt);
    const own = choice.logprobs;
    const places = new Map();
    reference?.logprobs.tokens.forEach((token, index) => places.set(`${reference.logprobs.text_offset[index]} ${token}`, reference.logprobs.token_logprobs[index]));
    return own.tokens.flatMap((text, index) => {
      if (own.text_offset[index] < first) return [];
      const here = own.token_logprobs[index];
      const there = reference ? places.get(`${own.text_offset[index]} ${text}`) ?? null : here;
      return [{ text, here, there, difference: here === null || there === null ? null : here - there }];
    });
  };
  const tokens = (rows) => {
    const box = make("div", "said tokens");
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Answer, by token. Arrow keys go from token to token.");
    rows.forEach((row, index) => {
      if (row.text === "") return;
      const node = make("span", `token ${shade(row.difference)}`.trim(), row.text);
      node.tabIndex = box.childElementCount ? -1 : 0;
      node.dataset.index = index;
      box.append(node);
    });
    const tell = (event) => {
      const node = event.target.closest(".token");
      if (!node) return;
      const row = rows[node.dataset.index];
      const figures = document.getElementById("figures");
      const quoted = JSON.stringify(row.text);
      if (row.here === null) figures.textContent = `${quoted}: nothing comes before it.`;
      else if (row.there === null) figures.textContent = `${quoted}: ${percent(row.here)} here (log-probability ${nats(row.here)}); the reference divides the text otherwise.`;
      else figures.textContent = `${quoted}: ${percent(row.here)} here, ${percent(row.there)} under the reference (log-probabilities ${nats(row.here)} and ${nats(row.there)}): ${times(row.difference)}.`;
    };
    box.addEventListener("mouseover", tell);
    box.addEventListener("focusin", tell);
    box.addEventListener("keydown", (event) => {
      const node = event.target.closest(".token");
      const next = { ArrowRight: node?.nextElementSibling, ArrowLeft: node?.previousElementSibling, Home: box.firstElementChild, End: box.lastElementChild }[event.key];
      if (!next) return;
      event.preventDefault();
      node.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    if (!box.childElementCount) box.append(make("em", "muted", "It wrote nothing and ended."));
    return box;
  };
  const table = (rows) => {
    const details = make("details");
    details.append(make("summary", "", "Figures of this answer"));
    const scroll = make("div", "scroll short");
    scroll.tabIndex = 0;
    const grid = make("table");
    grid.append(make("caption", "", "Natural logarithms of probabilities"));
    const head = grid.createTHead().insertRow();
    for (const [index, title] of ["Token", "Here", "Reference", "Difference"].entries()) {
      const cell = make("th", index ? "number" : "", title);
      cell.scope = "col";
      head.append(cell);
    }
    const body = grid.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      const name = make("th", "mono", row.text === "" ? "(part of a character)" : JSON.stringify(row.text));
      name.scope = "row";
      line.append(name, ...[row.here, row.there, row.difference].map((value) => make("td", "number", nats(value))));
    }
    scroll.append(grid);
    details.append(scroll);
    return details;
  };

  const comparison = (form) => {
    const answers = document.getElementById("answers");
    runs(form, async (data, signal) => {
      document.getElementById("figures").textContent = "";
      const prompts = data.get("prompts").split(/\r?\n/).filter((line) => line.trim()).slice(0, 4);
      const models = Array.from(form.querySelectorAll("[data-model]:checked"), (box) => ({ id: box.dataset.model, title: box.dataset.title, note: box.dataset.note }));
      const reference = data.get("reference");
      const named = form.elements.reference.selectedOptions[0].textContent;
      if (!prompts.length) throw new Error("Write a prompt first.");
      const cells = new Map();
      answers.replaceChildren(...prompts.map((prompt, index) => {
        const section = make("section");
        section.append(make("h2", "said", prompt));
        const grid = make("div", "answers");
        for (const model of models) {
          const card = make("section", "panel answer");
          card.append(make("h3", "", model.title), make("p", "muted", model.note), make("div", "said muted", "Waits for a worker."));
          cells.set(`${model.id} ${index}`, card);
          grid.append(card);
        }
        section.append(grid);
        return section;
      }));
      say("Asked. Each model is loaded by a worker of its own, which takes a while at first.");
      const show = (model, index, node) => cells.get(`${model.id} ${index}`).lastChild.replaceWith(node);
      const fields = { ...options(data), echo: true, logprobs: 0, prompt: prompts };
      if (data.get("seed")) fields.seed = Number(data.get("seed"));

      // A model and its base are one worker's: a second worker would only load them again.
      const lanes = new Map();
      const complete = (body) => {
        const lane = body.model.split(":")[0];
        const work = async () => (await ask("completions", body, signal)).json();
        const answer = (lanes.get(lane) ?? Promise.resolve()).then(work, work);
        lanes.set(lane, answer);
        return answer;
      };
      const compare = async (model) => {
        try {
          const written = await complete({ ...fields, model: model.id });
          const plain = written.choices.map((choice) => choice.text);
          plain.forEach((text, index) => show(model, index, make("div", "said", text.slice(prompts[index].length))));
          let scored = null;
          if (model.id !== reference) {
            const body = { model: reference, prompt: plain, max_tokens: 0, echo: true, logprobs: 0 };
            scored = (await complete(body)).choices;
          }
          written.choices.forEach((choice, index) => {
            const rows = aligned(choice, prompts[index], scored?.[index]);
            const box = make("div");
            box.append(tokens(rows), table(rows));
            if (!scored) box.append(make("p", "muted", "It is the reference, so nothing is coloured."));
            show(model, index, box);
          });
        } catch (error) {
          const text = error.name === "AbortError" ? "Stopped." : error.message;
          prompts.forEach((_, index) => show(model, index, make("p", "failed", text)));
          throw error;
        }
      };
      const outcomes = await Promise.allSettled(models.map(compare));
      const bad = outcomes.find((outcome) => outcome.status === "rejected");
      if (bad && bad.reason.name === "AbortError") throw bad.reason;
      const good = outcomes.filter((outcome) => outcome.status === "fulfilled").length;
      say(bad ? `${good} of ${models.length} models answered; the others say why not.` : `Done. Colours compare with ${named}.`, Boolean(bad));
    });
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const form of document.querySelectorAll("[data-playground]")) playground(form);
    for (const form of document.querySelectorAll("[data-comparison]")) comparison(form);
  });
})();
