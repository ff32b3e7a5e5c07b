// needs: chart
// Pairs of features as dials: two hands for query and key, and the angle between them.
KINDS.rope = (ui) => {
  const {d_head: D, freqs, max_len} = ui.data, n = freqs.length;
  const few = n <= 16 ? freqs.map((_, i) => i) : Array.from({length: 16}, (_, i) => Math.round((i * (n - 1)) / 15));
  const key = slider(ui, "key", "Key's position", {min: 0, max: max_len - 1});
  const distance = slider(ui, "distance", "Distance to query", {min: 0, max: Math.max(max_len - 1, 1)});
  const layout = choice(ui, "rope_layout", "which features are partners", {half: "half", interleaved: "interleaved"});
  const back = reset(ui, ui.first), strip = h("div", {class: "tgx-strip", role: "img"}), dials = h("div", {class: "tgx-dials"}), plot = h("div"), title = h("div", {class: "tgx-name"}, ui.data.title);
  ui.root.append(h("div", {class: "tgx-bar"}, title, h("div", {class: "tgx-row"}, layout, back)), strip, h("div", {class: "tgx-pairs"}, key, distance), dials,
    h("div", {class: "tgx-legend tgx-inline"}, h("span", {class: "tgx-key tgx-blue"}, "query"), h("span", {class: "tgx-key tgx-orange"}, "key"), h("span", {class: "tgx-note"}, "Shaded: the angle between them. It depends on the distance alone.")),
    plot, ui.said);
  const partners = (i, kind) => (kind === "half" ? [i, i + D / 2] : [2 * i, 2 * i + 1]);
  // From violet for the fastest pair to yellow for the slowest: lighter, too, for eyes that see fewer colours.
  const stops = [[94, 60, 153], [59, 105, 168], [33, 145, 140], [94, 189, 98], [240, 215, 60]];
  const hue = (i) => {
    const t = (4 * i) / Math.max(n - 1, 1), at = Math.min(Math.floor(t), 3);
    return mix(stops[at], stops[at + 1], t - at);
  };
  const score = (d) => freqs.reduce((sum, f) => sum + Math.cos(d * f), 0) / n;

  return (state) => {
    const W = ui.width, far = max_len - 1 - state.key, d = Math.min(state.distance, far), q = state.key + d;
    key.sync();
    distance.sync(Math.max(far, 1), d);
    layout.sync();
    back.sync();
    const owner = new Map(Array.from({length: n}, (_, i) => partners(i, state.rope_layout).map((f) => [f, i])).flat());
    strip.replaceChildren(...Array.from({length: D}, (_, f) => h("span", {style: `background:${hue(owner.get(f))};color:${owner.get(f) > n * 0.6 ? "#111" : "#fff"}`, title: `feature ${f}: pair ${owner.get(f)}`}, D <= 32 && W > 560 ? String(f) : "")));
    strip.setAttribute("aria-label", `the ${D} features of a head; partners share a colour: ${partners(0, state.rope_layout).join(" and ")}, ${partners(Math.min(1, n - 1), state.rope_layout).join(" and ")}, and so on`);
    const size = clamp(Math.floor(W / Math.min(few.length, W < 520 ? 4 : 8)) - 10, 56, 104), r = size / 2 - 4;
    dials.replaceChildren(...few.map((i) => {
      const a = q * freqs[i], b = state.key * freqs[i], gap = (a - b) % (2 * Math.PI), c = size / 2;
      const at = (angle, length) => [c + length * Math.cos(angle), c - length * Math.sin(angle)].map((v) => v.toFixed(2));
      const hand = (angle, kind) => h("svg:line", {x1: c, y1: c, x2: at(angle, r)[0], y2: at(angle, r)[1], class: `tgx-hand ${kind}`});
      const wedge = h("svg:path", {d: `M${c} ${c}L${at(b, r * 0.72)}A${r * 0.72} ${r * 0.72} 0 ${gap > Math.PI ? 1 : 0} 0 ${at(a, r * 0.72)}Z`, class: "tgx-wedge"});
      return h("div", {class: "tgx-dial"},
        h("svg:svg", {width: size, height: size, role: "img", "aria-label": `pair ${i}: ${(d * freqs[i]).toFixed(3)} radians between query and key`},
          h("svg:circle", {cx: c, cy: c, r, class: "tgx-face", style: `stroke:${hue(i)}`}), gap > 1e-9 ? wedge : "", hand(b, "tgx-from"), hand(a, "tgx-to")),
        h("div", {}, `pair ${i}`), h("div", {class: "tgx-note"}, partners(i, state.rope_layout).join(" & ")),
        h("div", {class: "tgx-note"}, `${(d * freqs[i]).toFixed(d * freqs[i] < 0.1 ? 3 : d * freqs[i] < 100 ? 2 : 0)} rad`));
    }));
    const points = Array.from({length: max_len}, (_, i) => [i, score(i)]);
    plot.replaceChildren(chart({width: W, height: 170, x: {min: 0, max: Math.max(max_len - 1, 1), label: "distance, in tokens"}, y: {min: -0.5, max: 1, label: "score of two equal vectors (1: same place)"},
      lines: [{points}], now: d, dots: [{x: d, y: score(d), r: 4}], label: "score by distance"}));
    ui.say(`Query at ${q}, key at ${state.key}: ${d} apart. Between them the fastest pair turns by ${(d * freqs[0]).toFixed(2)} rad, the slowest by ${(d * freqs[n - 1]).toFixed(3)} rad; two equal vectors keep ${percent(Math.max(score(d), 0))} of their score. Move the key: both hands turn, the angles stay.`);
  };
};
