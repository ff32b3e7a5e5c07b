// == chart({ ==
// A small line chart: axes with few round ticks, lines, level rules with names, one upright line for "now".
function ticks(min, max, log) {
  if (log) {
    const low = Math.ceil(Math.log10(min) - 1e-9), high = Math.floor(Math.log10(max) + 1e-9), some = [];
    for (let e = low - 1; e <= high; e++) for (const m of high - low >= 2 ? [1] : [1, 2, 5]) {
      const value = m * 10 ** e;
      if (value >= min * 0.999 && value <= max * 1.001) some.push(value);
    }
    const skip = Math.ceil(some.length / 6);
    return some.filter((_, i) => i % skip === 0);
  }
  const rough = (max - min) / 4, base = 10 ** Math.floor(Math.log10(rough || 1));
  const step = base * ([1, 2, 2.5, 5, 10].find((m) => m * base >= rough * 0.999) ?? 10), some = [];
  for (let value = Math.ceil(min / step - 1e-9) * step; value <= max + step * 1e-6; value += step) some.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  return some;
}

function short(x) {
  const size = Math.abs(x);
  if (size >= 1e9) return `${+(x / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(x / 1e6).toPrecision(3)}M`;
  if (size >= 1e3) return `${+(x / 1e3).toPrecision(3)}k`;
  return size && size < 0.001 ? x.toExponential(0) : String(+x.toPrecision(3));
}

function chart({width, height, x, y, lines, rules = [], dots = [], now, label}) {
  const left = 46, right = rules.length ? 62 : 12, top = 20, bottom = x.label ? 34 : 20;
  const W = width - left - right, H = height - top - bottom;
  const along = (axis) => (v) => axis.log ? (Math.log(v) - Math.log(axis.min)) / (Math.log(axis.max) - Math.log(axis.min)) : (v - axis.min) / (axis.max - axis.min || 1);
  const px = (v) => left + W * along(x)(v), py = (v) => top + H * (1 - along(y)(v));
  const text = (X, Y, words, props = {}) => h("svg:text", {x: X.toFixed(1), y: Y.toFixed(1), ...props}, words);
  const seen = (v, axis) => Number.isFinite(v) && v >= axis.min - 1e-12 && v <= axis.max * (1 + 1e-9) + 1e-12;
  const parts = [];
  for (const v of ticks(y.min, y.max, y.log)) parts.push(
    h("svg:line", {x1: left, x2: left + W, y1: py(v), y2: py(v), class: "tgx-grid"}), text(left - 6, py(v), (y.format ?? short)(v), {"text-anchor": "end", "dominant-baseline": "central"}));
  for (const v of ticks(x.min, x.max, x.log)) parts.push(text(px(v), top + H + 13, (x.format ?? short)(v), {"text-anchor": "middle"}));
  if (x.label) parts.push(text(left + W / 2, height - 4, x.label, {"text-anchor": "middle"}));
  parts.push(text(left - 40, 10, y.label, {class: "tgx-axis"}));
  let free = -Infinity; // names of levels that lie close are moved apart
  for (const rule of [...rules].sort((a, b) => b.y - a.y)) if (seen(rule.y, y)) {
    const Y = Math.max(py(rule.y), free + 11);
    free = Y;
    parts.push(h("svg:line", {x1: left, x2: left + W, y1: py(rule.y), y2: py(rule.y), class: "tgx-level"}), text(left + W + 5, Y, rule.name, {"dominant-baseline": "central"}));
  }
  for (const line of lines) {
    let path = "", pen = "M";
    for (const [a, b] of line.points) {
      if (!seen(a, x) || !Number.isFinite(b)) { pen = "M"; continue; }
      path += `${pen}${px(a).toFixed(1)} ${py(clamp(b, y.min, y.max)).toFixed(1)}`;
      pen = "L";
    }
    parts.push(h("svg:path", {d: path, class: `tgx-line ${line.class ?? ""}`}));
  }
  for (const dot of dots) if (seen(dot.x, x) && seen(dot.y, y)) parts.push(h("svg:circle", {cx: px(dot.x), cy: py(dot.y), r: dot.r ?? 3, class: dot.class ?? "tgx-dot"}));
  if (now != null && seen(now, x)) parts.push(h("svg:line", {x1: px(now), x2: px(now), y1: top, y2: top + H, class: "tgx-now"}));
  return h("svg:svg", {width, height, viewBox: `0 0 ${width} ${height}`, class: "tgx-chart", role: "img", "aria-label": label}, parts);
}
