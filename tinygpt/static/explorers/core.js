// What all explorers share. Every text from outside becomes a text node or an attribute's value, never markup.
const SVG = "http://www.w3.org/2000/svg";
const KINDS = {}; // name -> function(ui) that builds an explorer and returns how to draw it

// An element: h("div", {class: "a", onclick: f}, "text", child); SVG elements are asked for as "svg:path".
function h(tag, props = {}, ...kids) {
  const el = put(tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag), props);
  el.append(...kids.flat());
  return el;
}

// Give an element attributes, or take them (false, null).
function put(el, props) {
  for (let [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (value === false || value == null) el.removeAttribute(name);
    else if (el.getAttribute(name) !== (value = value === true ? "" : String(value))) el.setAttribute(name, value); // the same again would cost a redraw
  }
  return el;
}

// A token as it can be printed: spaces as dots, and nothing that is invisible or turns the line around.
function visible(text) {
  const chars = [...text].map((c) => {
    const n = c.codePointAt(0);
    if (c === " ") return "·";
    if (c === "\n") return "↵";
    if (c === "\t") return "⇥";
    if (n < 32) return String.fromCharCode(0x2400 + n);
    if (n === 0xb7 || /[\p{C}\p{Z}]/u.test(c)) return `‹${n.toString(16).toUpperCase().padStart(4, "0")}›`;
    return c;
  });
  return (/^\p{M}/u.test(text) ? "◌" : "") + chars.join("");
}

function brief(text, n = 18) {
  const chars = [...visible(text)];
  return chars.length > n ? chars.slice(0, n - 1).join("") + "…" : chars.join("");
}

const EOT = "<|endoftext|>"; // the token that opens every text, and ends it
const quoted = (text) => `“${brief(text)}”`;
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const percent = (p) => (p >= 0.9995 || p === 0 ? `${Math.round(p * 100)}\u00a0%` : p < 0.0005 ? "< 0.1\u00a0%" : `${(p * 100).toFixed(p < 0.0995 ? 1 : 0)}\u00a0%`);

// Numbers that travelled as base64, little end first.
function unpack(text, Type) {
  return new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

// A name that no other element of the page has.
let names = 0;
const fresh = () => `tgx-${names++}-${Math.random().toString(36).slice(2, 8)}`;

// A labelled slider bound to ui.state[name], over numbers or over a list of `stops`, with − and + for fingers, and a
// hint behind a question mark. JupyterLab would take its arrow keys without the data attribute.
function slider(ui, name, label, {stops, min = 0, max = stops?.length - 1, step = 1, format = String, hint}) {
  const near = (value) => stops.reduce((best, at, i) => (Math.abs(at - value) < Math.abs(stops[best] - value) ? i : best), 0);
  const heard = () => ui.set({[name]: stops ? stops[input.value] : Number(input.value)});
  const output = h("output", {class: "tgx-value"});
  const input = h("input", {type: "range", min, max, step, "aria-label": label, "data-lm-suppress-shortcuts": "true", "data-name": name, oninput: heard});
  const nudge = (sign, move) => h("button", {type: "button", class: "tgx-nudge", tabindex: -1, "aria-label": `${label}: ${move < 0 ? "less" : "more"}`,
    onclick: () => { move < 0 ? input.stepDown() : input.stepUp(); heard(); }}, sign);
  const row = h("div", {class: "tgx-slider"}, h("span", {}, label), nudge("\u2212", -1), rail(input, heard), nudge("+", 1), output);
  row.name = name;
  if (hint) explain(row, input, `${label}: what does it do?`, hint);
  row.sync = (max = input.max, value = ui.state[name]) => {
    input.max = max;
    input.value = stops ? near(value) : value;
    output.textContent = format(value);
    input.setAttribute("aria-valuetext", format(value));
    fill(input, clamp(0, Number(input.min), Number(input.max)));
  };
  return row;
}

// What a slider lies in. For fingers it acts in the slider's place (explorers.css): they move it sideways or with a
// tap, and upwards they scroll the page, which a browser's own slider would not let them.
function rail(input, heard) {
  let from = 0;
  const slide = (event) => {
    const box = input.getBoundingClientRect(), part = clamp((event.clientX - box.left - 8) / (box.width - 16), 0, 1);
    input.value = Number(input.min) + part * (input.max - input.min);
    heard();
  };
  const own = (act) => (event) => event.target !== input && act(event);
  return h("span", {class: "tgx-rail", onclick: own(slide), onpointerdown: own((event) => (from = event.clientX)),
    onpointermove: own((event) => event.buttons && Math.abs(event.clientX - from) > 4 && slide(event))}, input);
}

// The coloured part of a slider's line: from where nothing is done to where it stands.
function fill(input, rest = 0) {
  const part = (x) => `${(100 * (x - input.min)) / (input.max - input.min || 1)}%`, value = Number(input.value);
  input.style.setProperty("--from", part(Math.min(rest, value)));
  input.style.setProperty("--to", part(Math.max(rest, value)));
}

function button(text, onclick, props = {}) {
  return h("button", {type: "button", class: "tgx-button", "data-lm-suppress-shortcuts": "true", onclick, ...props}, text);
}

// Is the page around an element dark? What JupyterLab, Quarto and Bootstrap say, else the first background, else the system.
function isDark(el) {
  const {classList, dataset} = document.body;
  if (dataset.jpThemeLight) return dataset.jpThemeLight === "false";
  for (const theme of ["quarto", "vscode"]) {
    if (classList.contains(`${theme}-dark`)) return true;
    if (classList.contains(`${theme}-light`)) return false;
  }
  const said = dataset.bsTheme ?? document.documentElement.dataset.bsTheme;
  if (said === "dark" || said === "light") return said === "dark";
  for (let at = el; at; at = at.parentElement) {
    const [r, g, b, a = 1] = getComputedStyle(at).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    if (a > 0.5) return 0.3 * r + 0.6 * g + 0.1 * b < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

// Draw an explorer into `el`. `onchange(patch)` hears what the reader changed; `update(patch, data)` is the way back.
function mount({el, kind, data, state, onchange}) {
  const root = h("div", {class: `tgx tgx-${kind}`, role: "group", "aria-label": data.title});
  const said = h("div", {class: "tgx-say", role: "status", "aria-live": "polite"});
  const ui = {
    root, data, said, state: {...state}, first: {...state}, live: Boolean(onchange),
    say: (text) => said.textContent === text || (said.textContent = text),
    set(patch) {
      if (Object.entries(patch).every(([name, value]) => ui.state[name] === value)) return draw();
      Object.assign(ui.state, patch);
      onchange?.(patch);
      draw();
    },
  };
  const theme = () => (root.dataset.theme = isDark(el) ? "dark" : "light");
  el.replaceChildren(root);
  theme();
  let paint, width = 0; // as it was measured last
  const measure = () => {
    width = root.clientWidth;
    ui.width = width ? Math.floor(width - 2 * parseFloat(getComputedStyle(root).paddingLeft)) : 640;
    root.classList.toggle("tgx-narrow", ui.width < 620);
    root.classList.toggle("tgx-fingers", ui.width < 480 || matchMedia("(pointer: coarse)").matches);
  };
  const draw = () => paint(ui.state);
  const build = () => { root.replaceChildren(); measure(); paint = KINDS[kind](ui); draw(); };
  build();
  const onTheme = () => { const before = root.dataset.theme; if (theme() !== before) draw(); };
  const watcher = new MutationObserver(onTheme), system = matchMedia("(prefers-color-scheme: dark)");
  for (const at of [document.body, document.documentElement]) watcher.observe(at, {attributes: true});
  system.addEventListener("change", onTheme);
  const sizes = new ResizeObserver(() => { // a cell out of sight has no width: what it shows can wait
    if (![0, width].includes(root.clientWidth)) measure(), draw();
  });
  sizes.observe(root);
  return {
    update(patch = {}, data = null) {
      Object.assign(ui.state, patch);
      if (data) ui.data = data;
      data && !paint.reads ? build() : draw(); // an explorer that reads ui.data anew each time is not built anew
    },
    destroy() {
      watcher.disconnect();
      sizes.disconnect();
      system.removeEventListener("change", onTheme);
      root.remove();
    },
  };
}

// A page without a kernel: what to draw lies as JSON beside the place to draw it.
function start(id) {
  const mounted = (globalThis.tinygptMounted ??= new WeakSet());
  for (const host of document.querySelectorAll(`[data-tgx="${id}"]`)) {
    if (mounted.has(host)) continue;
    mounted.add(host);
    const {kind, data, state} = JSON.parse(host.querySelector("script[type='application/json']").textContent);
    mount({el: host.querySelector(".tgx-still"), kind, data, state});
  }
}

// JupyterLab: the same, bound to the traits of a Python object.
function render({model, el}) {
  const names = model.get("names");
  let mine = false;
  const view = mount({
    el, kind: model.get("kind"), data: model.get("data"),
    state: Object.fromEntries(names.map((name) => [name, model.get(name)])),
    onchange(patch) {
      mine = true;
      for (const [name, value] of Object.entries(patch)) if (names.includes(name)) model.set(name, value);
      mine = false;
      model.save_changes();
    },
  });
  for (const name of names) model.on(`change:${name}`, () => mine || view.update({[name]: model.get(name)}));
  model.on("change:data", () => view.update({}, model.get("data")));
  return () => view.destroy();
}

// What follows serves those scripts alone that hold the word in the line above it.

// == choice( ==
// One of a few, side by side: radio buttons in their working clothes.
function choice(ui, name, label, options) {
  const group = fresh();
  const inputs = Object.entries(options).map(([value, text]) => {
    const input = h("input", {type: "radio", name: group, value, "data-lm-suppress-shortcuts": "true",
      onchange: () => ui.set({[name]: value})});
    return h("label", {}, input, h("span", {}, text));
  });
  const row = h("div", {class: "tgx-choice", role: "radiogroup", "aria-label": label}, inputs);
  row.sync = () => inputs.forEach((label) => (label.firstChild.checked = label.firstChild.value === String(ui.state[name])));
  return row;
}

// == reset( ==
// A button that has disabled itself leaves the focus to another.
const handOn = (from, to) => from.disabled && to.focus({preventScroll: true});

// All knobs back to where they stood at first, or to other values.
function reset(ui, values) {
  const names = Object.keys(values), row = button("Reset", () => { ui.set(values); handOn(row, ui.root.querySelector("input[type=range]")); }, {title: "all knobs as they were"});
  row.sync = () => (row.disabled = names.every((name) => ui.state[name] === values[name]));
  return row;
}

// == hint ==
// What a knob does, said below it on demand; readers of screens hear it with the knob.
function explain(row, input, question, hint) {
  const id = fresh(), note = h("small", {class: "tgx-note tgx-hint", id, hidden: true}, hint);
  const ask = button("?", () => put(ask, {"aria-expanded": `${!(note.hidden = !note.hidden)}`}), {class: "tgx-ask", "aria-label": question, "aria-expanded": "false", "aria-controls": id});
  put(input, {"aria-describedby": id});
  row.firstChild.append(ask);
  row.append(note);
}

// == dots( ==
// How to read a token whose space is a dot, where there is one.
const dots = (tokens) => (tokens.some((text) => text.includes(" ")) ? [h("span", {class: "tgx-note"}, "“·” is a space.")] : []);

// == reveal( ==
// Scroll a box so far that a part of it is in view; the page around it stays where it is.
function reveal(box, part) {
  const top = part.offsetTop - box.offsetTop;
  if (top < box.scrollTop || top + part.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
}

// == prose( ==
// The same for running text, which keeps its spaces and lines.
const prose = (text) => [...text].map((c) => (c === " " || c === "\n" ? c : visible(c))).join("");

// == sharpen( ==
// A canvas as sharp as the screen; returns its context, in CSS pixels.
function sharpen(canvas, width, height) {
  const ratio = globalThis.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

// == mix( ==
// The colours that canvases need; the rest is in explorers.css. Okabe and Ito's, and a green and a purple for what is
// above and below zero: told apart by all eyes.
const PAINT = {
  light: {ground: [255, 255, 255], blue: [0, 90, 160], orange: [213, 94, 0], above: [27, 120, 55], below: [118, 42, 131], off: "#eceff3", line: "#c9d0da"},
  dark: {ground: [22, 27, 34], blue: [110, 195, 255], orange: [255, 150, 60], above: [120, 205, 110], below: [195, 145, 245], off: "#262d37", line: "#3a4350"},
};
const mix = (from, to, t) => `rgb(${from.map((x, i) => Math.round(x + (to[i] - x) * clamp(t, 0, 1))).join(",")})`;
