// needs: chart
// What a cache takes in memory and gives in time, by arithmetic alone.
const bytesText = (n) => (n >= 1e12 ? `${+(n / 1e12).toPrecision(3)} TB` : n >= 1e9 ? `${+(n / 1e9).toPrecision(3)} GB` : n >= 1e6 ? `${+(n / 1e6).toPrecision(3)} MB` : n >= 1e3 ? `${+(n / 1e3).toPrecision(3)} kB` : `${n} B`);
const timeText = (s) => (s >= 1 ? `${+s.toPrecision(3)} s` : s >= 1e-3 ? `${+(s * 1e3).toPrecision(3)} ms` : `${+(s * 1e6).toPrecision(3)} µs`);

// Bytes of keys and values of `length` tokens; slots are used again where there is a window.
function cacheBytes({n_layers, d_head}, {kv_heads, window, batch, bytes}, length) {
  return 2 * n_layers * batch * kv_heads * (window ? Math.min(window, length) : length) * d_head * bytes;
}

KINDS.cache = (ui) => {
  const {data} = ui, tops = Math.log2(data.max_len);
  const lengths = Array.from({length: Math.round(tops * 4) + 1}, (_, i) => Math.round(2 ** (i / 4)));
  const stops = {length: lengths, kv_heads: data.divisors, window: [0, ...lengths.filter((n) => n >= 16)], batch: [1, 2, 4, 8, 16, 32, 64, 128]};
  const knob = (name, label, format = (n) => n.toLocaleString("en")) => slider(ui, name, label, {stops: stops[name], format});
  const knobs = {
    length: knob("length", "Tokens"), kv_heads: knob("kv_heads", "Key/value heads", (n) => `${n} of ${data.n_heads}`),
    window: knob("window", "Window", (n) => (n ? n.toLocaleString("en") : "none")), batch: knob("batch", "Texts at once"),
  };
  const bytes = choice(ui, "bytes", "bytes of a number", {4: "float32", 2: "bfloat16", 1: "int8"});
  const machine = choice(ui, "machine", "the machine", Object.fromEntries(Object.keys(data.machines).map((name) => [name, name])));
  const back = reset(ui, ui.first), stack = h("div", {class: "tgx-stack"}), plots = h("div", {class: "tgx-plots"}), note = h("div", {class: "tgx-note"});
  ui.root.append(h("div", {class: "tgx-bar"}, h("div", {class: "tgx-name"}, data.title), h("div", {class: "tgx-row"}, bytes, machine, back)),
    h("div", {class: "tgx-pairs"}, Object.values(knobs)), stack, plots, note, ui.said);

  return (raw) => {
    const state = {...raw, bytes: Number(raw.bytes)}, W = ui.width, {bandwidth, flops} = data.machines[state.machine];
    for (const row of Object.values(knobs)) row.sync();
    bytes.sync();
    machine.sync();
    back.sync();
    const weights = data.n_params * state.bytes, held = (n) => cacheBytes(data, state, n);
    const full = (n) => cacheBytes(data, {...state, kv_heads: data.n_heads, window: 0}, n);
    const seen = (n) => (state.window ? Math.min(state.window, n) : n);
    const math = (n) => state.batch * (2 * data.n_params + 4 * data.n_layers * data.n_heads * data.d_head * seen(n)); // operations of one token for each text
    const cached = (n) => Math.max((weights + held(n)) / bandwidth, math(n) / flops);
    const anew = (n) => Math.max(weights / bandwidth, (math(n) * n) / flops);
    const L = state.length, most = Math.max(weights, full(L), held(L));
    const bar = (name, value, kind) => h("div", {class: "tgx-meter"}, h("span", {}, name), h("span", {class: "tgx-track"}, h("i", {class: `tgx-fill ${kind}`, style: `width:${Math.max((100 * value) / most, 0.3)}%`})), h("b", {}, bytesText(value)));
    stack.replaceChildren(bar("weights", weights, "tgx-bg-soft"), bar("cache", held(L), "tgx-bg-blue"), ...(held(L) < full(L) ? [bar("cache, nothing shared", full(L), "tgx-bg-line")] : []));
    const two = W > 620, width = two ? Math.floor(W / 2) - 8 : W;
    const x = {min: 1, max: data.max_len, log: true, label: "tokens in the text"}, line = (f) => lengths.map((n) => [n, f(n)]);
    const span = (...all) => ({min: Math.min(...all), max: Math.max(...all) * 1.15, log: true});
    plots.replaceChildren(
      chart({width, height: 190, x, y: {...span(held(1), full(data.max_len)), label: "bytes of the cache", format: (v) => bytesText(v)}, lines: [{points: line(full), class: "tgx-dim"}, {points: line(held)}], now: L, dots: [{x: L, y: held(L), r: 4}], label: "bytes by length"}),
      chart({width, height: 190, x, y: {...span(cached(1), anew(1), anew(data.max_len), cached(data.max_len)), label: "time of one token, at best", format: (v) => timeText(v)}, lines: [{points: line(anew), class: "tgx-dim"}, {points: line(cached)}], now: L, dots: [{x: L, y: cached(L), r: 4}], label: "time of a token by length"}));
    note.textContent = `Blue: with this cache. Grey: ${held(L) < full(L) ? "all heads and tokens kept (left); " : ""}no cache, all read anew (right). Time: no less than reading weights and cache once at ${bytesText(bandwidth)}/s, and computing at ${short(flops / 1e9)} GFLOP/s.`;
    ui.say(`${L.toLocaleString("en")} tokens: the cache takes ${bytesText(held(L))}, ${percent(held(L) / weights)} of the weights' ${bytesText(weights)}. A token takes at least ${timeText(cached(L))} with it, ${timeText(anew(L))} without.`);
  };
};
