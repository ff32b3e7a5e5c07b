// Who looks at whom: all heads small, one head large, one token in the focus.
KINDS.attention = (ui) => {
  const {tokens, n_layers: L, n_heads: H, window, docs} = ui.data, T = tokens.length;
  const packed = unpack(ui.data.scores, Int16Array), area = (T * (T + 1)) / 2;
  const hidden = (q, k) => k > q || (window && q - k >= window) || (docs && docs[q] !== docs[k]);

  const paint = () => PAINT[ui.root.dataset.theme];

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
    const {ground, blue, above, below} = paint();
    if (what === "weights") return mix(ground, blue, Math.sqrt(head.weights[at]) * 1.02);
    const s = head.scores[at] / head.reach;
    return mix(ground, s < 0 ? below : above, Math.abs(s));
  };
  const plot = (context, head, what, cell, row = cell) => {
    const inset = cell > 6 ? 0.5 : 0;
    for (let q = 0; q < T; q++) for (let k = 0; k <= q; k++) {
      context.fillStyle = hidden(q, k) ? paint().off : color(head, what, q * T + k);
      context.fillRect(k * cell, q * row, cell - inset, row - inset);
    }
  };

  // The heads at a glance: a grid of buttons, on phones a row, one of them in the tab order, arrows move among them.
  const small = heads.map((head, n) => {
    const [layer, at] = [Math.floor(n / H), n % H];
    const canvas = h("canvas", {"aria-hidden": "true"});
    const f = head.facts;
    const habit = `layer ${layer}, head ${at}; looks at itself ${percent(f.self)}, the token before ${percent(f.before)}, the first ${percent(f.first)}`;
    return button(canvas, () => ui.set({layer, head: at}), {class: "tgx-thumb", title: habit, "aria-label": habit,
      onkeydown: (event) => {
        const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
        if (!move) return;
        event.preventDefault();
        const to = {layer: clamp(ui.state.layer + move[0], 0, L - 1), head: clamp(ui.state.head + move[1], 0, H - 1)};
        ui.set(to);
        small[to.layer * H + to.head].focus();
      }});
  });
  small.forEach((b, n) => b.append(h("small", {"aria-hidden": "true"}, `L${Math.floor(n / H)} H${n % H}`)));
  const grid = h("div", {class: "tgx-thumbs", role: "group", "aria-label": "heads: choose one with the arrow keys"},
    h("span"), ...Array.from({length: H}, (_, i) => h("span", {class: "tgx-tick", "data-of": "head"})),
    ...small.flatMap((b, n) => (n % H ? [b] : [h("span", {class: "tgx-tick", "data-of": "layer"}), b])));

  const what = choice(ui, "show", "what the large picture shows", {weights: "weights", scores: "scores"});
  const pick = slider(ui, "token", `Token, 0 to ${T - 1}`, {min: 0, max: T - 1});
  const title = h("div", {class: "tgx-name"});
  const arcsNow = h("svg:g"), focus = h("svg:rect", {rx: 3, class: "tgx-focus"});
  const lines = tokens.map((text) => [h("svg:rect", {rx: 3}), h("svg:text", {"data-start": text === EOT})]); // of each token its ground and its name
  const list = h("svg:svg", {class: "tgx-arcs", role: "img", "aria-label": "arcs from the token in focus"}, arcsNow, lines.flat(), focus);
  const matrix = h("canvas", {class: "tgx-matrix", role: "img", "aria-label": "the head as a matrix, a row for each token that looks"});
  const cross = h("div", {class: "tgx-cross", "aria-hidden": "true"});
  const board = h("div", {class: "tgx-board"}, matrix, cross);
  const legend = h("details", {class: "tgx-legend", open: innerHeight >= 600 && ui.width >= 480});
  const stage = h("div", {class: "tgx-stage"}, list, board);
  const side = h("div", {class: "tgx-side"}, grid, h("div", {class: "tgx-bar"}, title, what), pick, ui.said, legend);
  ui.root.append(h("div", {class: "tgx-cols"}, side, stage));

  let hoverKey = null, dressed = "", drawn = ""; // what the small pictures, and the large one, show now
  let kept = null, seen = null; // the token that a click or a knob chose, and the one under the mouse
  let wide = 0, room = 0, laid = ""; // as drawn last
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

  const called = (i) => (tokens[i] === EOT ? "the start of the text" : quoted(tokens[i]));
  return ({layer, head: at, token, show}) => {
    const n = layer * H + at, head = heads[n], w = head.weights, W = ui.width, narrow = W < 680, short = innerHeight < 600;
    const labels = narrow ? 92 : 108, arcs = narrow ? 30 : clamp(W * 0.07, 44, 90);
    const belt = narrow && (L > 6 || W < 38 * H + 60); // heads too many for a grid stand in one row
    const thumb = belt ? 46 : Math.floor(narrow ? clamp((W - 60) / H - 10, 28, 40) : clamp(200 / H - 8, 16, short ? 32 : 44)), aside = narrow ? 0 : Math.max(W < 860 ? 216 : 304, H * (thumb + 10) + 60);
    if (W !== wide) { // on a page of its own, under a heading, all is to be seen at once
      const above = ui.root.getBoundingClientRect().top + scrollY;
      [wide, room] = [W, Math.min(narrow ? 570 : 640, !narrow && above < 0.3 * innerHeight ? innerHeight - above - 52 : 0.92 * innerHeight - 34)];
    }
    const full = (narrow ? 570 : 640) / T, row = clamp(room / T, clamp(full, 5, 9), narrow ? 20 : 26), size = row * T;
    const tall = !narrow && size > room + 1, cell = Math.min(row, (W - (aside && aside + 20) - labels - arcs - (tall ? 18 : 0)) / T);
    const dress = `${thumb} ${show} ${ui.root.dataset.theme}`, layout = `${W} ${cell} ${row}`, plotted = `${n} ${layout} ${dress}`;
    const y = (i) => (i + 0.5) * row, weight = (i) => (i <= token ? w[token * T + i] : w[i * T + token]);
    if (layout !== laid) {
      Object.assign(stage.style, {maxHeight: tall ? `${room}px` : "", overflowY: tall ? "auto" : ""});
      ui.root.classList.toggle("tgx-narrow", narrow);
      grid.classList.toggle("tgx-belt", belt);
      side.style.width = narrow ? "" : `${aside}px`;
      for (const of of ["head", "layer"]) [...grid.querySelectorAll(`[data-of=${of}]`)].forEach((tick, i) => (tick.textContent = thumb < 38 ? `${of[0].toUpperCase()}${i}` : `${of} ${i}`)); // as long as there is room
      grid.style.gridTemplateColumns = `auto repeat(${H}, ${thumb + 8}px)`;
      put(list, {width: arcs + labels, height: size});
      for (const [i, [ground, name]] of lines.entries()) {
        put(ground, {x: arcs + 3, y: i * row + 0.5, width: labels - 6, height: row - 1});
        put(name, {x: arcs + 8, y: y(i), "font-size": clamp(row - 2.5, 8.5, 12.5)}).textContent = tokens[i] === EOT ? "(start)" : brief(tokens[i], narrow ? 10 : 13);
      }
    }
    if (dress !== dressed) {
      small.forEach((b, i) => plot(sharpen(b.firstChild, thumb, thumb), heads[i], show, thumb / T));
      const key = (name, text, style) => h("span", {class: `tgx-key ${name}`, style}, text), note = (text) => h("span", {class: "tgx-note"}, text);
      legend.replaceChildren(h("summary", {class: "tgx-note"}, "What the colours say"),
        key("tgx-blue", "what the token looks at"), key("tgx-orange", "who looks at the token"),
        ...(show === "weights" ? [note(`${ui.root.dataset.theme === "dark" ? "Brighter" : "Darker"}: more weight, by its square root. Each row sums to 100 %.`)]
          : ["above", "below"].map((name) => key("", `score ${name} zero`, `color: rgb(${paint()[name]})`))),
        ...(window || docs ? [note(`Grey: hidden by the ${[window && `window of ${window}`, docs && "document mask"].filter(Boolean).join(" and the ")}.`)] : []),
        ...(tokens.includes(EOT) ? [note(`“(start)”: the token ${EOT}, which stands before every text.`)] : []), ...dots(tokens));
    }
    if (plotted !== drawn) {
      plot(sharpen(matrix, cell * T, size), head, show, cell, row);
      small.forEach((b, i) => put(b, {"aria-pressed": `${i === n}`, tabindex: i === n ? 0 : -1}));
      title.textContent = `Layer ${layer}, head ${at}`;
      what.sync();
      const {offsetLeft: left, offsetWidth: long} = small[n];
      if (left < grid.scrollLeft || left + long > grid.scrollLeft + grid.clientWidth) grid.scrollLeft = left - grid.clientWidth / 2;
    }
    [laid, dressed, drawn] = [layout, dress, plotted];
    pick.sync();
    if (tall && (token * row < stage.scrollTop || (token + 1) * row > stage.scrollTop + room)) stage.scrollTop = token * row - room / 2;

    // Arcs: to the tokens above that the token looks at, and to those below that look at it. Where rows are low, there is room for some names.
    const order = [...tokens.keys()], named = [];
    if (row < 9) order.sort((a, b) => (b === token) - (a === token) || Math.max(weight(b), 0.05) - Math.max(weight(a), 0.05));
    arcsNow.replaceChildren(...tokens.flatMap((_, i) => (docs && i && docs[i] !== docs[i - 1] ? [h("svg:line", {x1: 0, x2: arcs + labels, y1: i * row, y2: i * row, class: "tgx-rule"})] : [])));
    for (const i of order) {
      const p = weight(i), [ground, name] = lines[i], bend = arcs - 1.3 * Math.min(arcs - 4, 14 + Math.abs(i - token) * row * 0.45);
      const seen = p > 0.005, room = row >= 9 || !named.some((other) => Math.abs(other - i) * row < 10);
      if (seen && i !== token) arcsNow.append(h("svg:path", {d: `M${arcs} ${y(token)}C${bend} ${y(token)} ${bend} ${y(i)} ${arcs} ${y(i)}`,
        class: i < token ? "tgx-to" : "tgx-from", "stroke-width": (0.6 + 5 * p).toFixed(2), opacity: (0.15 + 0.8 * Math.sqrt(p)).toFixed(2)}));
      put(ground, {class: i <= token ? "tgx-to-fill" : "tgx-from-fill", opacity: seen ? Math.min(Math.sqrt(p), row < 9 ? 0.45 : 1).toFixed(3) : 0});
      put(name, {class: Math.sqrt(p) > (ui.root.dataset.theme === "dark" ? 0.6 : 0.85) && row >= 9 ? "tgx-on" : "", visibility: room ? null : "hidden"});
      if (room) named.push(i);
    }
    put(focus, {x: arcs + 2.5, y: token * row + 0.5, width: labels - 5, height: row - 1});
    Object.assign(cross.style, {top: `${token * row}px`, width: `${(token + 1) * cell}px`, height: `${row}px`});

    const ranked = (score) => tokens.map((_, i) => [score(i), i]).filter(([p]) => p > 0.005).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const words = (pairs) => pairs.map(([p, i]) => `${called(i)} at ${i} (${percent(p)})`).join(", ");
    const to = ranked((i) => (i <= token ? weight(i) : 0)), from = ranked((i) => (i > token ? weight(i) : 0)), k = hoverKey;
    const one = k === null || k > token ? "" : ` On ${called(k)} at ${k}: ${hidden(token, k) ? "hidden by the mask." : `score ${head.scores[token * T + k].toFixed(2)}, weight ${percent(w[token * T + k])}.`}`;
    const said = `${called(token)} at ${token} looks at ${words(to)}.` +
      (from.length ? ` Later tokens that look at it most: ${words(from)}.` : token === T - 1 ? "" : " No later token looks at it.") + one;
    ui.say(said[0].toUpperCase() + said.slice(1));
  };
};
