"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  // What the server sent, before anything here changes it: a part is replaced only when this changes.
  const parts = (root) => new Map(all("[data-part]", root).map((part) => [part.dataset.part, part.outerHTML]));
  let sent = parts(document);

  // What the reader chose; it outlives the parts of the page that show it.
  const off = new Set();
  const filter = { benchmark: "", outcome: "", text: "" };
  const PAGE = 24;
  let most = PAGE;

  function showRuns() {
    for (const button of all("[data-switch]")) {
      button.disabled = false;
      button.setAttribute("aria-pressed", String(!off.has(button.dataset.switch)));
    }
    for (const drawn of all("[data-run]")) drawn.classList.toggle("off", off.has(drawn.dataset.run));
  }

  function outcomeHolds(shares, outcome) {
    const known = shares.filter((share) => share !== null);
    if (!outcome) return true;
    if (outcome === "all") return known.every((share) => share === 1);
    if (outcome === "none") return known.every((share) => share === 0);
    const [better, worse] = outcome.split(">").map((model) => shares[Number(model)]);
    return better !== null && worse !== null && better > worse;
  }

  const texts = new WeakMap();
  function holds(example) {
    if (filter.benchmark && example.dataset.benchmark !== filter.benchmark) return false;
    if (!outcomeHolds(JSON.parse(example.dataset.shares), filter.outcome)) return false;
    if (!texts.has(example)) texts.set(example, example.textContent.toLowerCase());
    return texts.get(example).includes(filter.text.trim().toLowerCase());
  }

  function showExamples() {
    const form = document.querySelector(".filters");
    if (!form) return;
    form.hidden = false;
    for (const name of Object.keys(filter)) {
      const field = form.elements[name];
      if (field.value !== filter[name]) field.value = filter[name];
      if (field.value !== filter[name]) filter[name] = field.value = "";  // the choice is no more
    }
    const examples = all(".example");
    const matching = new Set(examples.filter(holds));
    let shown = 0;
    for (const example of examples) {
      example.classList.toggle("off", !matching.has(example) || ++shown > most);
    }
    const count = document.querySelector(".count");
    const text = `${matching.size} of ${examples.length} match` + (matching.size > most ? `; the first ${most} are shown` : "");
    if (count.textContent !== text) count.textContent = text;
    document.querySelector(".more").hidden = matching.size <= most;
  }

  function readOff(event) {
    const figure = event.target.closest("figure[data-curve]");
    const source = figure && event.target.closest("svg") && curve(figure);
    if (!source) return clearReadings();
    const box = source.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * source.svg.viewBox.baseVal.width;
    const step = source.x[0] + ((x - source.box[0]) / source.box[2]) * (source.x[1] - source.x[0]);
    if (x < source.box[0] - 4 || x > source.box[0] + source.box[2] + 4) return clearReadings();
    for (const other of all("figure[data-curve]")) readAt(other, step);
  }

  const curves = new WeakMap();
  function curve(figure) {
    if (!curves.has(figure)) {
      const told = JSON.parse(figure.querySelector("script").textContent);
      const svg = figure.querySelector("svg");
      const [, top, , height] = told.box;
      svg.insertAdjacentHTML("beforeend", `<line y1="${top}" y2="${top + height}" stroke="currentColor" stroke-opacity=".5" class="off"/>`);
      const line = svg.lastElementChild;
      curves.set(figure, { ...told, svg, line });
    }
    return curves.get(figure);
  }

  function readAt(figure, step) {
    const { box, x, runs, line } = curve(figure);
    const at = box[0] + ((step - x[0]) / (x[1] - x[0])) * box[2];
    line.classList.toggle("off", at < box[0] || at > box[0] + box[2]);
    line.setAttribute("x1", at);
    line.setAttribute("x2", at);
    const readout = figure.querySelector(".readout");
    readout.textContent = "";
    for (const [run, [steps, values]] of Object.entries(runs)) {
      if (off.has(run)) continue;
      let place = steps.findIndex((each) => each >= step);
      if (place < 0) place = steps.length - 1;
      if (place > 0 && step - steps[place - 1] < steps[place] - step) place -= 1;
      const told = document.createElement("span");
      told.style.color = `var(--run-${Number(run) % 6})`;
      told.textContent = `${steps[place]}: ${values[place] === null ? "not finite" : values[place]}`;
      readout.append(told);
    }
  }

  function clearReadings() {
    for (const line of all("figure[data-curve] > svg > line")) line.classList.add("off");
    for (const readout of all(".readout")) readout.textContent = "";
  }

  function showAll() {
    showRuns();
    showExamples();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("switch" in button.dataset) {
      const run = button.dataset.switch;
      off.has(run) ? off.delete(run) : off.add(run);
      showRuns();
    } else if (button.classList.contains("more")) {
      const before = all(".example:not(.off)").length;
      most += PAGE;
      showExamples();
      all(".example:not(.off)")[before].focus();
    }
  });
  function choose({ target }) {
    if (!target.closest(".filters") || filter[target.name] === target.value) return;
    filter[target.name] = target.value;
    most = PAGE;
    showExamples();
  }
  document.addEventListener("input", choose);
  document.addEventListener("change", choose);
  document.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("pointermove", readOff);

  function replaceParts(page) {
    const fresh = parts(page);
    for (const [name, html] of fresh) {
      const old = document.querySelector(`[data-part="${name}"]`);
      if (!old || sent.get(name) === html) continue;
      const next = document.importNode(page.querySelector(`[data-part="${name}"]`), true);
      for (const open of all("details[open][id]", old)) {
        const same = next.querySelector(`#${CSS.escape(open.id)}`);
        if (same) same.open = true;
      }
      const focused = old.contains(document.activeElement) ? document.activeElement : null;
      const scrolled = all(".wide", old).map((box) => box.scrollLeft);
      old.replaceWith(next);
      all(".wide", next).forEach((box, place) => (box.scrollLeft = scrolled[place] ?? 0));
      if (focused?.id) document.getElementById(focused.id)?.focus({ preventScroll: true });
    }
    sent = fresh;
    document.title = page.title;
    showAll();
  }

  let version = null;
  async function update() {
    let answer, text;
    try {
      answer = await fetch(location.pathname, { cache: "no-cache" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      text = await answer.text();
    } catch {
      return tell("off");
    }
    const tag = answer.headers.get("ETag");
    if (tag !== version) replaceParts(new DOMParser().parseFromString(text, "text/html"));
    version = tag;
    tell("on");
  }

  function tell(state) {
    const line = document.querySelector(".live");
    if (line.textContent !== line.dataset[state]) line.textContent = line.dataset[state];
  }

  const every = Number(document.body.dataset.every ?? 0);
  if (every) {
    setInterval(() => document.hidden || update(), every);
    document.addEventListener("visibilitychange", () => document.hidden || update());
  }
  showAll();
})();
