// The distribution that the next token is drawn from: chapter 12's penalties, temperature, top-k, top-p and min-p.
// `seen` are the ids of the whole text, `made` those of them that were generated.
function filtered(logits, seen, made, {temperature, top_k, top_p, min_p, repetition_penalty: factor, frequency_penalty: often, presence_penalty: once}) {
  const scores = Float64Array.from(logits);
  for (const id of new Set(seen)) scores[id] = scores[id] > 0 ? scores[id] / factor : scores[id] * factor;
  for (const id of made) scores[id] -= often;
  for (const id of new Set(made)) scores[id] -= once;
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b); // of equal ones the lower id
  const best = scores[order[0]], heat = temperature || 1;
  const probs = new Float64Array(scores.length);
  if (temperature === 0) {
    probs[order[0]] = 1;
    const all = order.reduce((sum, id) => sum + Math.exp(scores[id] - best), 0); // what it had, warm
    return {probs, order, kept: 1 / all, n: 1, scores};
  }
  const weight = (id) => Math.exp((scores[id] - best) / heat);
  let all = 0, few = order.slice(0, top_k || order.length);
  for (const id of order) all += weight(id);
  const sum = (ids) => ids.reduce((total, id) => total + weight(id), 0);
  if (top_p < 1) {
    const whole = sum(few);
    let held = 0, n = 0;
    do held += weight(few[n++]) / whole; while (held < top_p && n < few.length);
    few = few.slice(0, n);
  }
  if (min_p > 0) few = few.filter((id) => weight(id) >= min_p);
  const whole = sum(few);
  for (const id of few) probs[id] = weight(id) / whole;
  return {probs, order, kept: whole / all, n: few.length, scores};
}

// As `pack_logits` writes them: what a step is worth, and how many steps each is.
function logitsIn(packed) {
  const [step, steps] = packed.split(" ");
  return Float32Array.from(unpack(steps, Int16Array), (n) => n * step);
}

const entropy = (probs) => probs.reduce((bits, p) => (p > 0 ? bits - p * Math.log2(p) : bits), 0);

KINDS.sampling = (ui) => {
  const {tokens, prompt, end} = ui.data, V = tokens.length, SHOWN = 12;
  const unless = (value, text) => (x) => (x === value ? "off" : text(x)), signed = (x) => x.toFixed(1).replace("-", "\u2212");
  const knobs = [
    slider(ui, "temperature", "Temperature", {min: 0, max: 2, step: 0.05, format: (x) => (x ? x.toFixed(2) : "0 · greedy"),
      hint: "scores are divided by it: below 1 the likely become likelier"}),
    slider(ui, "top_k", "Top-k", {min: 0, max: 50, format: unless(0, String), hint: "at most so many tokens"}),
    slider(ui, "top_p", "Top-p", {min: 0.05, max: 1, step: 0.01, format: unless(1, (x) => x.toFixed(2)), hint: "the fewest tokens that hold this share"}),
    slider(ui, "min_p", "Min-p", {min: 0, max: 1, step: 0.01, format: unless(0, (x) => x.toFixed(2)), hint: "at least this share of the best token's probability"}),
    slider(ui, "repetition_penalty", "Repetition penalty", {min: 1, max: 2, step: 0.05, format: unless(1, (x) => x.toFixed(2)), hint: "what the text holds becomes less likely"}),
    slider(ui, "frequency_penalty", "Frequency penalty", {min: -2, max: 2, step: 0.1, format: unless(0, signed), hint: "off the score of a token, for each time that it was written here"}),
    slider(ui, "presence_penalty", "Presence penalty", {min: -2, max: 2, step: 0.1, format: unless(0, signed), hint: "off the score of a token, once, if it was written here at all"}),
  ];
  const text = h("div", {class: "tgx-text", role: "group", "aria-label": "the text so far"});
  const bars = h("div", {class: "tgx-bars", role: "group", "aria-label": "likeliest next tokens: choose one to write it"});
  const facts = h("div", {class: "tgx-facts"});
  let now = null;
  const stored = (ids) => ui.state.tree[ids.join(",")];
  const grow = (id) => {
    ui.set({new: [...ui.state.new, id]});
    if (!stored(ui.state.new)) dice.focus({preventScroll: true}); // not on a row that is gone, nor where one more Enter takes the word back
  };
  const drawn = () => {
    if (!stored(ui.state.new)) return;
    let u = Math.random();
    const id = now.order.find((id) => (u -= now.probs[id]) < 0);
    grow(id ?? now.order[0]);
  };
  const dice = button("Draw a token", drawn), back = button("Back", () => { ui.set({new: ui.state.new.slice(0, -1)}); handOn(back, dice); });
  const anew = button("Start again", () => { ui.set({new: []}); handOn(anew, dice); });
  const off = {temperature: 1, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, frequency_penalty: 0, presence_penalty: 0};
  const calm = reset(ui, off);
  ui.root.append(text, h("div", {class: "tgx-bar"}, h("div", {class: "tgx-row"}, dice, back, anew)),
    h("div", {class: "tgx-cols"}, h("div", {class: "tgx-main"}, bars), h("div", {class: "tgx-knobs"}, knobs, h("div", {class: "tgx-bar tgx-end"}, calm), facts)), ui.said);

  const rows = Array.from({length: SHOWN}, () => {
    const word = h("span", {class: "tgx-word"}), share = h("span", {class: "tgx-value"});
    const own = h("i", {class: "tgx-own"}), bar = h("i", {class: "tgx-fill"});
    const row = h("button", {type: "button", class: "tgx-bet", "data-lm-suppress-shortcuts": "true"}, word, h("span", {class: "tgx-track"}, own, bar), share);
    row.addEventListener("click", () => grow(row.token));
    return Object.assign(row, {word, share, own, bar});
  });
  const rest = h("div", {class: "tgx-note tgx-rest"}), lost = h("div", {class: "tgx-lost", role: "status"});
  bars.append(...rows, rest, lost);

  return (state) => {
    [...knobs, calm].forEach((knob) => knob.sync());
    const packed = stored(state.new), over = state.new.at(-1) === end;
    const mark = (id, i) => h("span", {class: i < prompt.length ? "tgx-given" : "tgx-made"}, prose(tokens[id]));
    text.replaceChildren(...[...prompt, ...state.new].flatMap((id, i) => [mark(id, i), "\u200b"]), h("span", {class: "tgx-caret"}));
    text.scrollTop = text.scrollHeight; // a long text shows its end
    back.disabled = anew.disabled = !state.new.length;
    dice.setAttribute("aria-disabled", !packed);
    back.classList.toggle("tgx-first", !packed && !ui.live);
    rows.forEach((row) => (row.hidden = !packed));
    rest.hidden = facts.hidden = !packed;
    lost.textContent = packed ? "" : ui.live ? "The model is reading …"
      : over ? `The tale is told: with ${quoted(tokens[end])} the model ended it. Go back and choose another word, or start again.`
        : "This page holds no model, only some stored beginnings. Go back and choose a dark word, or start again.";
    if (!packed) return ui.say("");
    const logits = logitsIn(packed);
    const own = filtered(logits, [], [], off);
    now = filtered(logits, [...prompt, ...state.new], state.new, state);
    const shown = now.order.slice(0, ui.width < 620 ? 8 : SHOWN), most = Math.max(...shown.map((id) => Math.max(own.probs[id], now.probs[id])));
    rows.forEach((row, i) => {
      const id = (row.token = shown[i]), p = now.probs[id];
      row.hidden = id === undefined;
      if (row.hidden) return;
      const near = ui.live || id === end || stored([...state.new, id]);
      row.word.textContent = brief(tokens[id]);
      row.own.style.width = `${(100 * own.probs[id]) / most}%`;
      row.bar.style.width = `${(100 * p) / most}%`;
      row.share.textContent = p ? percent(p) : "cut";
      row.classList.toggle("tgx-cut", !p);
      row.classList.toggle("tgx-far", !near);
      row.title = near ? "write this token" : "what comes behind it is not stored in this page";
      row.setAttribute("aria-label", `${visible(tokens[id])}: ${p ? percent(p) : "cut"}; the model itself says ${percent(own.probs[id])}`);
    });
    const beyond = 1 - shown.reduce((sum, id) => sum + now.probs[id], 0), n = Math.max(now.n - shown.filter((id) => now.probs[id]).length, 0);
    rest.textContent = n ? `${n.toLocaleString("en")} other tokens share ${percent(Math.max(beyond, 0))}` : "no other token can come";
    const fact = (name, value) => h("div", {}, h("span", {}, name), h("b", {}, value));
    facts.replaceChildren(
      fact("Tokens that can come", `${now.n.toLocaleString("en")} of ${V.toLocaleString("en")}`),
      fact(state.temperature ? "Probability kept" : "Greedy: the likeliest has", percent(now.kept)),
      fact("Entropy", `${entropy(now.probs).toFixed(2)} bits`),
      fact("… of the model itself", `${entropy(own.probs).toFixed(2)} bits`),
      h("div", {class: "tgx-note"}, "Bars: what is drawn from. Outlines: what the model itself says. ", ui.live ? "" : "Pale words: the page ends behind them. ", ...dots(tokens)));
    ui.say(`${quoted(tokens[shown[0]])} is likeliest now, ${percent(now.probs[shown[0]])}. ${now.n === 1 ? "Nothing else can come." : `${now.n.toLocaleString("en")} tokens can come; the choice is worth ${entropy(now.probs).toFixed(2)} bits.`}`);
  };
};
