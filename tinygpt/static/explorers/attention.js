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
    const {ground, blue, above, below} = ui.paint;
    if (what === "weights") return mix(ground, blue, Math.sqrt(head.weights[at]) * 1.02);
    const s = head.scores[at] / head.reach;
    return mix(ground, s < 0 ? below : above, Math.abs(s));
  };
  const plot = (context, head, what, cell, row = cell) => {
    const inset = cell > 6 ? 0.5 : 0;
    for (let q = 0; q < T; q++) for (let k = 0; k <= q; k++) {
      context.fillStyle = hidden(q, k) ? ui.paint.off : color(head, what, q * T + k);
      context.fillRect(k * cell, q * row, cell - inset, row - inset);
    }
  };

  // The heads at a glance: a grid of buttons, on phones a row, one of them in the tab order, arrows move among them.
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
      }}, canvas, h("small", {"aria-hidden": "true"}, `L${layer} H${at}`));
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
  const stage = h("div", {class: "tgx-stage"}, list, board);
  const side = h("div", {class: "tgx-side"}, grid, h("div", {class: "tgx-bar"}, title, what), pick, ui.said, legend);
  ui.root.append(h("div", {class: "tgx-cols"}, side, stage));

  let hoverKey = null, dressed = "", drawn = ""; // what the small pictures, and the large one, show now
  let kept = null, seen = null; // the token that a click or a knob chose, and the one under the mouse
  let wide = 0, room = 0; // as drawn last
  const onPlace = (e) => {
    const chosen = e.type === "click", box = matrix.getBoundingClientRect();
    if (e.pointerType === "touch" && !chosen) return; // a finger that moves scrolls the page
    const q = clamp(Math.floor(((e.clientY - box.top) / box.height) * T), 0, T - 1), k = Math.floor(((e.clientX - box.left) / box.width) * T);
    hoverKey = k >= 0 && k <= q ? k : null;
    if (chosen) kept = q;
    else if (ui.state.token !== seen) kept = ui.state.token;
    ui.set({token: (seen = q)});
  };
  for (const name of ["pointermove", "click"]) stage.addEventListener(name, onPlace);
  stage.addEventListener("pointerleave", () => {
    hoverKey = null;
    ui.set(ui.state.token === seen ? {token: kept} : {});
    seen = null;
  });

  return ({layer, head: at, token, show}) => {
    const head = heads[layer * H + at], w = head.weights, W = ui.width, narrow = W < 680;
    const labels = narrow ? 92 : 108, arcs = narrow ? 30 : clamp(W * 0.07, 44, 90);
    const belt = narrow && (L > 6 || W < 38 * H + 60); // heads too many for a grid stand in one row
    const thumb = belt ? 46 : narrow ? Math.floor(clamp((W - 60) / H - 10, 28, 40)) : Math.floor(clamp(200 / H - 8, 16, 44)), aside = narrow ? 0 : Math.max(W < 860 ? 216 : 304, H * (thumb + 10) + 60);
    if (W !== wide) [wide, room] = [W, Math.min(narrow ? 570 : 640, 0.92 * innerHeight - 34)];
    const full = (narrow ? 570 : 640) / T, row = clamp(room / T, clamp(full, 5, 9), narrow ? 20 : 26), size = row * T;
    const tall = !narrow && size > room + 1, cell = Math.min(row, (W - (aside && aside + 20) - labels - arcs - (tall ? 18 : 0)) / T);
    Object.assign(stage.style, {maxHeight: tall ? `${room}px` : "", overflowY: tall ? "auto" : ""});
    if (tall && (token * row < stage.scrollTop || (token + 1) * row > stage.scrollTop + room)) stage.scrollTop = token * row - room / 2;
    ui.root.classList.toggle("tgx-narrow", narrow);
    grid.classList.toggle("tgx-belt", belt);
    side.style.width = narrow ? "" : `${aside}px`;
    grid.style.gridTemplateColumns = `auto repeat(${H}, ${thumb + 8}px)`;
    const dress = `${thumb} ${show} ${ui.root.dataset.theme}`, plotted = `${layer} ${at} ${cell} ${row} ${dress}`;
    small.forEach((b, n) => {
      if (dress !== dressed) plot(sharpen(b.firstChild, thumb, thumb), heads[n], show, thumb / T);
      const chosen = n === layer * H + at;
      b.setAttribute("aria-pressed", chosen);
      b.tabIndex = chosen ? 0 : -1;
    });
    if (plotted !== drawn) plot(sharpen(matrix, cell * T, size), head, show, cell, row);
    [dressed, drawn] = [dress, plotted];
    const {offsetLeft: left, offsetWidth: long} = small[layer * H + at];
    if (left < grid.scrollLeft || left + long > grid.scrollLeft + grid.clientWidth) grid.scrollLeft = left - grid.clientWidth / 2;

    title.textContent = `Layer ${layer}, head ${at}`;
    what.sync();
    pick.sync();
    legend.replaceChildren(
      h("span", {class: "tgx-key tgx-blue"}, "what the token looks at"),
      h("span", {class: "tgx-key tgx-orange"}, "who looks at the token"),
      ...(show === "weights"
        ? [h("span", {class: "tgx-note"}, `${ui.root.dataset.theme === "dark" ? "Brighter" : "Darker"}: more weight, by its square root. Each row sums to 100 %.`)]
        : [["above", "score above zero"], ["below", "score below zero"]].map(([name, text]) => h("span", {class: "tgx-key", style: `color: rgb(${ui.paint[name]})`}, text))),
      ...(window || docs ? [h("span", {class: "tgx-note"}, `Grey: hidden by the ${[window && `window of ${window}`, docs && "document mask"].filter(Boolean).join(" and the ")}.`)] : []), ...dots(tokens));

    // Arcs: upwards to what the token looks at, downwards to who looks at it.
    const marks = [], y = (i) => (i + 0.5) * row, x0 = arcs;
    for (let i = 0; i < T; i++) {
      const p = i < token ? w[token * T + i] : i > token ? w[i * T + token] : 0;
      if (p < 0.005) continue;
      const bend = Math.min(arcs - 4, 14 + Math.abs(i - token) * row * 0.45);
      marks.push(h("svg:path", {d: `M${x0} ${y(token)}C${x0 - bend * 1.3} ${y(token)} ${x0 - bend * 1.3} ${y(i)} ${x0} ${y(i)}`,
        class: i < token ? "tgx-to" : "tgx-from", "stroke-width": (0.6 + 5 * p).toFixed(2), opacity: (0.15 + 0.8 * Math.sqrt(p)).toFixed(2)}));
    }
    const weight = (i) => (i <= token ? w[token * T + i] : w[i * T + token]), order = tokens.map((_, i) => i), named = [];
    if (row < 9) order.sort((a, b) => (b === token) - (a === token) || Math.max(weight(b), 0.05) - Math.max(weight(a), 0.05)); // room for some names
    for (const i of order) {
      const p = weight(i), top = i * row + 0.5;
      if (p > 0.005) marks.push(h("svg:rect", {x: x0 + 3, y: top, width: labels - 6, height: row - 1, rx: 3, class: i <= token ? "tgx-to-fill" : "tgx-from-fill", opacity: Math.sqrt(p).toFixed(3)}));
      if (i === token) marks.push(h("svg:rect", {x: x0 + 2.5, y: top, width: labels - 5, height: row - 1, rx: 3, class: "tgx-focus"}));
      if (docs && i && docs[i] !== docs[i - 1]) marks.push(h("svg:line", {x1: 0, x2: arcs + labels, y1: i * row, y2: i * row, class: "tgx-rule"}));
      if (row < 9 && named.some((other) => Math.abs(other - i) * row < 10)) continue;
      named.push(i);
      marks.push(h("svg:text", {x: x0 + 8, y: y(i), "font-size": clamp(row - 2.5, 8.5, 12.5), class: Math.sqrt(p) > 0.62 && row >= 9 ? "tgx-on" : ""}, brief(tokens[i], narrow ? 10 : 13)));
    }
    list.replaceChildren(...marks);
    list.setAttribute("width", arcs + labels);
    list.setAttribute("height", size);
    Object.assign(cross.style, {top: `${token * row}px`, width: `${(token + 1) * cell}px`, height: `${row}px`});

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
