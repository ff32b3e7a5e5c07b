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

// A draw: tokens lie end to end, each as long as its share, and a number u from 0 to 1 falls on one of them.
function spin(parts, u = Math.random()) {
  let to = 0;
  for (const [id, share] of parts) {
    to += share;
    if (u < to) return {id, u, from: to - share, to, parts};
  }
  return {...spin(parts, 0), u}; // shares that end a little below 1
}

const OFF = {temperature: 1, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, frequency_penalty: 0, presence_penalty: 0};

KINDS.sampling = (ui) => {
  const {tokens, prompt, end} = ui.data, V = tokens.length, SHOWN = 12;
  const unless = (value, text) => (x) => (x === value ? "off" : text(x)), hundredth = (x) => x.toFixed(2), signed = (x) => x.toFixed(1).replace("-", "\u2212");
  const knob = (name, label, min, max, step, format, hint) => slider(ui, name, label, {min, max, step, format, hint});
  const filters = [
    knob("temperature", "Temperature", 0, 2, 0.05, (x) => (x ? hundredth(x) : "0 · greedy"), "The model’s scores (logits) are divided by it: below 1 the likely become likelier."),
    knob("top_k", "Top-k", 0, 50, 1, unless(0, String), "At most so many tokens, the likeliest ones."),
    knob("top_p", "Top-p", 0.05, 1, 0.01, unless(1, hundredth), "The fewest tokens that hold this share of the probability."),
    knob("min_p", "Min-p", 0, 1, 0.01, unless(0, hundredth), "Each token has at least this share of the likeliest one’s probability."),
  ];
  const penalties = [
    knob("repetition_penalty", "Repetition penalty", 1, 2, 0.05, unless(1, hundredth), "Tokens that the text holds become less likely: scores (logits) above 0 are divided by it, those below are multiplied."),
    knob("frequency_penalty", "Frequency penalty", -2, 2, 0.1, unless(0, signed), "Taken off a token’s score (logit) for each time that it was written behind the prompt."),
    knob("presence_penalty", "Presence penalty", -2, 2, 0.1, unless(0, signed), "Taken off a token’s score (logit), once, if it was written behind the prompt at all."),
  ];
  const text = h("div", {class: "tgx-text", role: "group", "aria-label": "the text so far"});
  const bars = h("div", {class: "tgx-bars", role: "group", "aria-label": "likeliest next tokens: choose one to write it"});
  const facts = ["Can come", "Kept", "Entropy", "Model’s own"].map((name) => h("div", {}, h("span", {}, name), h("b"))), board = h("div", {class: "tgx-facts"}, facts);

  // What comes behind some new ids, as far as it is known here, and which of the tokens there are known in their turn.
  const stored = (ids) => ui.state.tree[ids.join(",")];
  const read = (ids) => filtered(logitsIn(stored(ids)), [...prompt, ...ids], ids, ui.state);
  const partsOf = ({order, probs, n}) => order.slice(0, n).map((id) => [id, probs[id]]);
  const led = () => { // the stored ones in the place of a token behind which the page ends: their parts, and the share they hold
    const before = ui.state.new.slice(0, -1);
    if (ui.live || !ui.state.new.length || ui.state.new.at(-1) === end || !stored(before)) return {};
    const few = partsOf(read(before)).filter(([id, share]) => (id === end ? share >= 0.01 : stored([...before, id]))), held = few.reduce((sum, [, share]) => sum + share, 0);
    return {before, held, parts: few.map(([id, share]) => [id, share / held]), some: few.slice(0, 3).map(([id]) => quoted(tokens[id])).join(", ")};
  };
  const likeliest = (ids) => { // of what the model would write behind some new ids
    const {order, probs} = read(ids);
    return order.slice(0, 3).filter((id) => probs[id] > 0.005).map((id) => `${quoted(tokens[id])} (${percent(probs[id])})`).join(", ");
  };
  const ending = () => { // who wrote the end of the text
    const before = ui.state.new.slice(0, -1), share = stored(before) ? ` The model gave it ${percent(read(before).probs[end])}.` : "";
    return cast && !cast.among ? `The tale is told: the model ended it with ${quoted(tokens[end])}.` : `The tale ends here, with ${quoted(tokens[end])}.${share}`;
  };
  let now = null, own = null, packed = null, cast = null, written = null, other = {};
  const moment = (ids = ui.state.new) => `${Object.keys(OFF).map((name) => ui.state[name])} ${ids}`;
  const grow = (id, before = ui.state.new) => {
    ui.set({new: [...before, id]});
    if (!stored(ui.state.new)) dice.focus({preventScroll: true}); // not on a row that is gone, nor where one more Enter takes the word back
  };
  const draw = () => {
    const parts = packed ? partsOf(now) : other.parts;
    if (!parts?.length) return;
    const before = packed ? ui.state.new : other.before, fell = spin(parts);
    cast = {...fell, among: packed ? 0 : parts.length, moment: moment([...before, fell.id])};
    grow(fell.id, before);
  };
  const dice = button("Draw a token", draw), back = button("Back", () => { ui.set({new: ui.state.new.slice(0, -1)}); handOn(back, dice); });
  const anew = button("Start again", () => { ui.set({new: []}); handOn(anew, dice); });
  const copy = button("Copy the text", async () => { // a page from a disk may not reach the clipboard: then the text is marked
    const ids = [...prompt, ...ui.state.new].filter((id) => tokens[id] !== EOT);
    getSelection().selectAllChildren(text);
    const done = await navigator.clipboard?.writeText(ids.map((id) => tokens[id]).join("").trim()).then(() => true, () => false);
    copy.textContent = done || document.execCommand("copy") ? "Copied" : "Now press Ctrl+C";
  });
  text.addEventListener("copy", (event) => {
    event.clipboardData.setData("text/plain", String(getSelection()).replaceAll("\u200b", ""));
    event.preventDefault();
  });
  const calm = reset(ui, OFF), touched = () => penalties.filter((knob) => ui.state[knob.name] !== OFF[knob.name]).length;
  const fold = h("summary"), more = h("details", {open: ui.width >= 620 || touched() > 0}, fold, penalties);
  const slots = Array.from({length: SHOWN + 1}, () => h("i")), pin = h("b"), told = h("div", {class: "tgx-note"}), when = h("b");
  const words = h("details", {}, h("summary", {}, "What the words mean"), h("div", {class: "tgx-note"}, ...[
    ["u", "the number that a draw throws, anywhere from 0 to 1."], ["Can come", "so many of all tokens may be written next; the others are cut."],
    ["Kept", "the probability that those had, before the others were cut."], ["Entropy", "how open the choice is: 0 bits is sure, 1 bit is a coin, 2 bits are four equal words."],
    ["Model’s own", "the entropy before any knob was turned."]].map(([word, means]) => h("div", {}, h("b", {}, word), `: ${means}`))));
  ui.root.append(text, h("div", {class: "tgx-bar"}, h("div", {class: "tgx-row"}, dice, back, anew)), h("div", {class: "tgx-wheel", "aria-hidden": "true"}, slots, pin), told,
    h("div", {class: "tgx-cols"}, h("div", {class: "tgx-main"}, bars), h("div", {class: "tgx-knobs"}, board, filters, calm, more, copy, words)), ui.said);
  ui.said.classList.add("tgx-heard");

  const rows = Array.from({length: SHOWN}, () => {
    const word = h("span", {class: "tgx-word"}), share = h("span", {class: "tgx-value"});
    const outline = h("i", {class: "tgx-own"}), bar = h("i", {class: "tgx-fill"});
    const row = button(word, () => grow(row.token), {class: "tgx-bet"});
    row.append(h("span", {class: "tgx-track"}, outline, bar), share);
    return Object.assign(row, {word, share, outline, bar});
  });
  const rest = h("div", {class: "tgx-note tgx-rest"}), lost = h("div", {class: "tgx-lost", role: "status"});
  bars.append(...rows, rest, lost);

  // The parts end to end, and where u fell; before a draw, where it can fall.
  const showWheel = () => {
    if (cast?.moment !== moment()) cast = null;
    const parts = cast?.parts ?? (now ? partsOf(now) : []), first = parts.slice(0, SHOWN).filter(([, share]) => share * ui.width >= 0.5), few = (x) => x.toFixed(cast.to - cast.from < 0.01 ? 5 : 3), wide = (share) => `${(100 * share).toFixed(2)}%`;
    slots.forEach((slot, i) => {
      const [id, share] = first[i] ?? [null, i === SHOWN ? 1 - first.reduce((sum, [, share]) => sum + share, 0) : 0];
      slot.style.width = wide(Math.max(share, 0));
      slot.textContent = share > 0.06 ? (id === null ? "others" : brief(tokens[id], 12)) : "";
      slot.classList.toggle("tgx-hit", cast !== null && id === cast.id);
    });
    pin.hidden = !cast;
    pin.style.left = cast && wide(cast.u);
    when.textContent = cast ? "The last draw: " : "The next draw: ";
    const among = cast?.among === 1 ? "only one word is stored here; " : cast?.among ? `among the ${cast.among} stored words, ` : "";
    const said = (cast
      ? `${among}u = ${few(cast.u)} fell on ${quoted(tokens[cast.id])} (${few(cast.from)} to ${few(cast.to)}).`
      : "a number u from 0 to 1 will fall on one part of the strip.");
    told.replaceChildren(when, said);
    return when.textContent + said;
  };

  return (state) => {
    [...filters, ...penalties, calm].forEach((knob) => knob.sync());
    fold.textContent = touched() ? `Penalties, ${touched()} at work` : "Penalties";
    const found = stored(state.new), over = state.new.at(-1) === end;
    if (written !== String(state.new)) {
      const mark = (id, i) => h("span", {class: i < prompt.length ? "tgx-given" : "tgx-made"}, i || tokens[id] !== EOT ? prose(tokens[id]) : "");
      text.replaceChildren(...[...prompt, ...state.new].flatMap((id, i) => ["\u200b", mark(id, i)]));
      text.scrollTop = text.scrollHeight; // a long text shows its end
      written = String(state.new);
    }
    copy.textContent = "Copy the text";
    other = found ? {} : led();
    const ready = found || other.parts?.length;
    back.disabled = anew.disabled = !state.new.length;
    dice.textContent = ready && !found ? "A stored word" : "Draw a token";
    dice.setAttribute("aria-disabled", !ready);
    back.classList.toggle("tgx-first", !ready && !ui.live);
    rows.forEach((row) => (row.hidden = !found));
    rest.hidden = board.hidden = !found;
    if (found && found !== packed) own = filtered(logitsIn(found), [], [], OFF);
    packed = found;
    if (found) now = read(state.new);
    const drawn = showWheel();
    lost.textContent = found ? "" : ui.live ? "The model is reading …"
      : over ? `${ending()} Go back and choose another word, or start again.`
        : ready ? `What comes behind ${quoted(tokens[state.new.at(-1)])} is not here: this page holds no model, only some stored beginnings. ` +
          `“A stored word” draws another in its place (${other.some}${other.parts.length > 3 ? " …" : ""}: ${percent(other.held)} of the probability), or go back.`
          : "The page is over here: it holds no model, only some stored beginnings. " + (other.before
            ? `The tale is not: the model would go on. Its likeliest in the last place: ${likeliest(other.before)}. ` : "") + "Go back, or start again.";
    if (!found) return ui.say("");
    const shown = now.order.slice(0, ui.width < 620 ? 6 : SHOWN), most = Math.max(...shown.map((id) => Math.max(own.probs[id], now.probs[id])));
    rows.forEach((row, i) => {
      const id = (row.token = shown[i]), p = now.probs[id];
      row.hidden = id === undefined;
      if (row.hidden) return;
      const near = ui.live || id === end || stored([...state.new, id]);
      row.word.textContent = brief(tokens[id]);
      row.outline.style.width = `${(100 * own.probs[id]) / most}%`;
      row.bar.style.width = `${(100 * p) / most}%`;
      row.share.textContent = p ? percent(p) : "cut";
      row.classList.toggle("tgx-cut", !p);
      row.classList.toggle("tgx-far", !near);
      row.title = near ? "write this token" : "this page cannot go on behind it";
      row.setAttribute("aria-label", `${visible(tokens[id])}: ${p ? percent(p) : "cut"}; the model itself says ${percent(own.probs[id])}`);
    });
    const beyond = 1 - shown.reduce((sum, id) => sum + now.probs[id], 0), n = Math.max(now.n - shown.filter((id) => now.probs[id]).length, 0);
    rest.textContent = `${n ? `${n.toLocaleString("en")} others share ${percent(Math.max(beyond, 0))}` : "No other token can come"}. ` +
      `Outline: before any knob was turned. “·”: a space.${ui.live ? "" : " Pale words: this page cannot go on behind them."}`;
    const bits = (probs) => `${entropy(probs).toFixed(2)} bits`;
    facts[1].firstChild.textContent = state.temperature ? "Kept" : "Greedy: the likeliest has";
    [`${now.n.toLocaleString("en")} of ${V.toLocaleString("en")}`, percent(now.kept), bits(now.probs), bits(own.probs)].forEach((value, i) => (facts[i].lastChild.textContent = value));
    ui.say(`${cast ? drawn : ""} ${quoted(tokens[shown[0]])} is likeliest now, ${percent(now.probs[shown[0]])}. ${now.n === 1 ? "Nothing else can come." : `${now.n.toLocaleString("en")} tokens can come; the choice is worth ${bits(now.probs)}.`}`);
  };
};
