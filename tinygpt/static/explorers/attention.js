// Who looks at whom: all heads small, one head large, one token in the focus.
KINDS.attention = (ui) => {
  const {tokens, n_layers: L, n_heads: H, window, docs} = ui.data, T = tokens.length;
  const packed = unpack(ui.data.scores, Int16Array), area = (T * (T + 1)) / 2;
  const hidden = (q, k) => k > q || (window && q - k >= window) || (docs && docs[q] !== docs[k]);

  // Scores as they were (kept as whole steps), weights by the softmax of chapter 05.
  const heads = Array.from({length: L * H}, (_, n) => {
    const scores = new Float32Array(T * T), weights = new Float32Array(T * T);
    const facts = {self: 0, before: 0, first: 0}, step = ui.data.steps[n];
    for (let q = 0, at = n * area; q < T; q++) {
      let top = -Infinity, sum = 0;
      for (let k = 0; k <= q; k++, at++) {
        scores[q * T + k] = packed[at] * step;
        if (!hidden(q, k)) top = Math.max(top, packed[at] * step);
      }
      for (let k = 0; k <= q; k++) if (!hidden(q, k)) sum += weights[q * T + k] = Math.exp(scores[q * T + k] - top);
      for (let k = 0; k <= q; k++) weights[q * T + k] /= sum;
      if (q) {
        facts.self += weights[q * T + q] / (T - 1);
        facts.before += weights[q * T + q - 1] / (T - 1);
        facts.first += weights[q * T] / (T - 1);
      }
    }
    return {scores, weights, facts, reach: Math.max(...scores.map(Math.abs), 1e-6)};
  });

  const color = (head, what, at) => {
    const {ground, blue, orange} = ui.paint;
    if (what === "weights") return mix(ground, blue, Math.sqrt(head.weights[at]) * 1.02);
    const s = head.scores[at] / head.reach;
    return mix(ground, s < 0 ? blue : orange, Math.abs(s));
  };
  const plot = (context, head, what, cell) => {
    const inset = cell > 6 ? 0.5 : 0;
    for (let q = 0; q < T; q++) for (let k = 0; k <= q; k++) {
      context.fillStyle = hidden(q, k) ? ui.paint.off : color(head, what, q * T + k);
      context.fillRect(k * cell, q * cell, cell - inset, cell - inset);
    }
  };

  // The heads at a glance: a grid of buttons, one of them in the tab order, arrows move among them.
  const small = heads.map((head, n) => {
    const [layer, at] = [Math.floor(n / H), n % H];
    const canvas = h("canvas", {"aria-hidden": "true"});
    const f = head.facts;
    const habit = `itself ${percent(f.self)}, the token before ${percent(f.before)}, the first ${percent(f.first)}`;
    return h("button", {type: "button", class: "tgx-thumb", "data-lm-suppress-shortcuts": "true",
      "aria-label": `layer ${layer}, head ${at}; looks at ${habit}`, title: `layer ${layer}, head ${at}: ${habit}`,
      onclick: () => ui.set({layer, head: at}),
      onkeydown: (event) => {
        const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
        if (!move) return;
        event.preventDefault();
        const to = {layer: clamp(ui.state.layer + move[0], 0, L - 1), head: clamp(ui.state.head + move[1], 0, H - 1)};
        ui.set(to);
        small[to.layer * H + to.head].focus();
      }}, canvas);
  });
  const grid = h("div", {class: "tgx-thumbs", role: "group", "aria-label": "heads: choose one with the arrow keys"},
    h("span"), ...Array.from({length: H}, (_, i) => h("span", {class: "tgx-tick"}, `head ${i}`)),
    ...small.flatMap((b, n) => (n % H ? [b] : [h("span", {class: "tgx-tick"}, `layer ${n / H}`), b])));

  const what = choice(ui, "show", "what the large picture shows", {weights: "weights", scores: "scores"});
  const pick = slider(ui, "token", "Token", {min: 0, max: T - 1, format: (i) => `${i} of ${T - 1}`});
  const title = h("div", {class: "tgx-name"});
  const list = h("svg:svg", {class: "tgx-arcs", role: "img", "aria-label": "arcs from the token in focus"});
  const matrix = h("canvas", {class: "tgx-matrix", role: "img", "aria-label": "the head as a matrix, a row for each token that looks"});
  const cross = h("div", {class: "tgx-cross", "aria-hidden": "true"});
  const board = h("div", {class: "tgx-board"}, matrix, cross);
  const legend = h("div", {class: "tgx-legend"});
  ui.root.append(
    h("div", {class: "tgx-cols"},
      h("div", {class: "tgx-side"}, grid, legend),
      h("div", {class: "tgx-main"}, h("div", {class: "tgx-bar"}, title, what), pick, h("div", {class: "tgx-stage"}, list, board))),
    ui.said);

  let row = 14, hoverKey = null, dressed = "", drawn = ""; // what the small pictures, and the large one, show now
  const point = (event, el, act) => {
    const box = el.getBoundingClientRect();
    act(clamp(Math.floor((event.clientY - box.top) / row), 0, T - 1), Math.floor((event.clientX - box.left) / row));
  };
  list.addEventListener("pointermove", (e) => point(e, list, (q) => q !== ui.state.token && ui.set({token: q})));
  list.addEventListener("pointerdown", (e) => point(e, list, (q) => ui.set({token: q})));
  const onCell = (e) => {
    const box = matrix.getBoundingClientRect(), cell = box.width / T;
    const q = clamp(Math.floor((e.clientY - box.top) / cell), 0, T - 1), k = Math.floor((e.clientX - box.left) / cell);
    hoverKey = k >= 0 && k <= q ? k : null;
    ui.set({token: q});
  };
  matrix.addEventListener("pointermove", onCell);
  matrix.addEventListener("pointerdown", onCell);
  matrix.addEventListener("pointerleave", () => { hoverKey = null; ui.set({}); });

  return ({layer, head: at, token, show}) => {
    const head = heads[layer * H + at], w = head.weights, W = ui.width, narrow = W < 620;
    const labels = 114, arcs = narrow ? Math.min(150, W - labels - 8) : clamp(W * 0.12, 60, 110);
    const room = (width) => clamp((width - labels - arcs - 8) / T, 8, 18); // of a row, if so much width is left
    const thumb = Math.floor(clamp(((narrow ? W : 260) - 52) / H - 8, 16, 56)), side = H * (thumb + 10) + 60;
    const above = narrow || room(W - side - 24) < Math.min(12, room(W)); // the small pictures above the large one
    ui.root.classList.toggle("tgx-narrow", narrow);
    ui.root.classList.toggle("tgx-above", above);
    row = narrow ? 17 : room(above ? W : W - side - 24);
    const cell = narrow ? W / T : row, size = row * T;
    grid.style.gridTemplateColumns = `auto repeat(${H}, ${thumb + 8}px)`;
    const dress = `${thumb} ${show} ${ui.root.dataset.theme}`, plotted = `${layer} ${at} ${cell} ${dress}`;
    small.forEach((b, n) => {
      if (dress !== dressed) plot(sharpen(b.firstChild, thumb, thumb), heads[n], show, thumb / T);
      const chosen = n === layer * H + at;
      b.setAttribute("aria-pressed", chosen);
      b.tabIndex = chosen ? 0 : -1;
    });
    if (plotted !== drawn) plot(sharpen(matrix, cell * T, cell * T), head, show, cell);
    [dressed, drawn] = [dress, plotted];

    title.textContent = `Layer ${layer}, head ${at}`;
    what.sync();
    pick.sync();
    legend.replaceChildren(
      h("span", {class: "tgx-key tgx-blue"}, "what the token looks at"),
      h("span", {class: "tgx-key tgx-orange"}, "who looks at the token"),
      h("span", {class: "tgx-note"}, show === "weights" ? `${ui.root.dataset.theme === "dark" ? "Brighter" : "Darker"}: more weight. Each row sums to 100 %.` : "Orange: high score. Blue: low score, below zero."),
      ...(window || docs ? [h("span", {class: "tgx-note"}, `Grey: hidden by the ${[window && `window of ${window}`, docs && "document mask"].filter(Boolean).join(" and the ")}.`)] : []));

    // Arcs on the left of the tokens: upwards to what the token looks at, downwards to who looks at it.
    const marks = [], y = (i) => (i + 0.5) * row, x0 = arcs;
    for (let i = 0; i < T; i++) {
      const p = i < token ? w[token * T + i] : i > token ? w[i * T + token] : 0;
      if (p < 0.005) continue;
      const bend = Math.min(arcs - 4, 14 + Math.abs(i - token) * row * 0.45);
      marks.push(h("svg:path", {d: `M${x0} ${y(token)}C${x0 - bend * 1.3} ${y(token)} ${x0 - bend * 1.3} ${y(i)} ${x0} ${y(i)}`,
        class: i < token ? "tgx-to" : "tgx-from", "stroke-width": (0.6 + 5 * p).toFixed(2), opacity: (0.15 + 0.8 * Math.sqrt(p)).toFixed(2)}));
    }
    for (let i = 0; i < T; i++) {
      const p = i <= token ? w[token * T + i] : 0, r = i > token ? w[i * T + token] : 0;
      if (p > 0.005 || r > 0.005) marks.push(h("svg:rect", {x: x0 + 3, y: i * row + 0.5, width: labels - 6, height: row - 1, rx: 3,
        class: p ? "tgx-to-fill" : "tgx-from-fill", opacity: Math.sqrt(p || r).toFixed(3)}));
      if (i === token) marks.push(h("svg:rect", {x: x0 + 2.5, y: i * row + 0.5, width: labels - 5, height: row - 1, rx: 3, class: "tgx-focus"}));
      if (docs && i && docs[i] !== docs[i - 1]) marks.push(h("svg:line", {x1: 0, x2: arcs + labels, y1: i * row, y2: i * row, class: "tgx-rule"}));
      const strong = Math.sqrt(p || r) > 0.62;
      marks.push(h("svg:text", {x: x0 + 8, y: y(i), "font-size": clamp(row - 3, 8, 12.5), class: strong ? "tgx-on" : ""}, brief(tokens[i], 13)));
    }
    list.replaceChildren(...marks);
    list.setAttribute("width", arcs + labels);
    list.setAttribute("height", size);
    Object.assign(cross.style, {top: `${token * cell}px`, width: `${(token + 1) * cell}px`, height: `${cell}px`});

    const ranked = (score) => tokens.map((_, i) => [score(i), i]).filter(([p]) => p > 0.005).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const words = (pairs) => pairs.map(([p, i]) => `${quoted(tokens[i])} at ${i} (${percent(p)})`).join(", ");
    const to = ranked((i) => (i <= token ? w[token * T + i] : 0)), from = ranked((i) => (i > token ? w[i * T + token] : 0));
    const one = hoverKey != null && hoverKey <= token
      ? hidden(token, hoverKey) ? ` On ${quoted(tokens[hoverKey])} at ${hoverKey}: hidden by the mask.`
        : ` On ${quoted(tokens[hoverKey])} at ${hoverKey}: score ${head.scores[token * T + hoverKey].toFixed(2)}, weight ${percent(w[token * T + hoverKey])}.` : "";
    ui.say(`${quoted(tokens[token])} at ${token} looks at ${words(to)}.` +
      (from.length ? ` Later tokens that look at it most: ${words(from)}.` : token === T - 1 ? "" : " No later token looks at it.") + one);
  };
};
