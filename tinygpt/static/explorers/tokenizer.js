// Byte-pair encoding as chapter 01 does it, one rule at a time.
function codec(data) {
  const bytes = (text) => [...new TextEncoder().encode(text)];
  const singles = data.singles && unpack(data.singles, Int32Array), rules = new Map(), names = new Map();
  const merges = data.merges ? unpack(data.merges, Int32Array) : [];
  if (singles) singles.forEach((id, b) => names.set(id, [b]));
  for (let rank = 0; rank < merges.length / 3; rank++) {
    const [a, b, made] = merges.subarray(3 * rank, 3 * rank + 3);
    rules.set(`${a},${b}`, [rank, made]);
    names.set(made, [...names.get(a), ...names.get(b)]);
  }
  const chars = data.chars && new Map(data.chars.map((char, id) => [char, id]));
  if (chars) for (const [char, id] of chars) names.set(id, bytes(char));
  for (const [text, id] of Object.entries(data.special)) names.set(id, bytes(text));

  function pieces(text, special) { // [piece, is it special?]
    const found = [], cut = (part) => {
      let end = 0;
      for (const m of part.matchAll(new RegExp(data.pattern, "gu"))) {
        if (m.index > end) found.push([part.slice(end, m.index), false]);
        if (m[0]) found.push([m[0], false]);
        end = m.index + m[0].length;
      }
      if (end < part.length) found.push([part.slice(end), false]);
    };
    const known = special ? Object.keys(data.special).sort((a, b) => b.length - a.length) : [];
    let at = 0;
    if (known.length) {
      const all = new RegExp(known.map((s) => s.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|"), "gu");
      for (const m of text.matchAll(all)) {
        cut(text.slice(at, m.index));
        found.push([m[0], true]);
        at = m.index + m[0].length;
      }
    }
    cut(text.slice(at));
    return found;
  }

  // Tokens of a text when only the rules below `limit` are known; the ranks that took part.
  function encode(text, special = false, limit = Infinity) {
    const tokens = [], fired = new Set();
    pieces(text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd"), special).forEach(([piece, isSpecial], n) => {
      let ids = isSpecial ? [data.special[piece]] : chars ? [...piece].map((c) => chars.get(c) ?? -1) : bytes(piece).map((b) => singles[b]);
      const news = new Map();
      for (;;) {
        let low = limit, made = 0;
        for (let i = 0; i + 1 < ids.length; i++) {
          const rule = rules.get(`${ids[i]},${ids[i + 1]}`);
          if (rule && rule[0] < low) [low, made] = rule;
        }
        if (low === limit) break;
        const [a, b] = merges.subarray(3 * low, 3 * low + 2), next = [];
        for (let i = 0; i < ids.length; i++) ids[i] === a && ids[i + 1] === b ? (next.push(made), i++) : next.push(ids[i]);
        fired.add(low);
        news.set(made, low);
        ids = next;
      }
      for (const id of ids) tokens.push({id, piece: n, special: isSpecial, rank: news.get(id) ?? -1});
    });
    return {tokens, fired: [...fired].sort((a, b) => a - b)};
  }
  const decoder = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true});
  const hex = (id) => (names.get(id) ?? []).map((b) => b.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  const name = (id) => {
    try { return names.has(id) ? decoder.decode(Uint8Array.from(names.get(id))) : "?"; } catch { return `⟨${hex(id)}⟩`; }
  };
  const rule = (rank) => [...merges.subarray(3 * rank, 3 * rank + 3)];
  return {encode, name, hex, rule, n_rules: merges.length / 3, n_bytes: (text) => bytes(text).length};
}

KINDS.tokenizer = (ui) => {
  const code = codec(ui.data);
  const box = h("textarea", {rows: 3, "aria-label": "text to cut into tokens", spellcheck: "false", "data-lm-suppress-shortcuts": "true",
    oninput: () => ui.set({text: box.value, step: null})});
  const back = reset(ui, ui.first), below = choice(ui, "below", "what stands below each token", {ids: "ids", bytes: "bytes"});
  const special = choice(ui, "special", "special tokens in the text", {text: "plain text", token: "special"});
  const steps = slider(ui, "step", "Rules applied", {min: 0, max: 1, format: (i) => `${i} of ${n}`});
  const chips = h("div", {class: "tgx-chips", role: "list", "aria-label": "tokens"}), facts = h("div", {class: "tgx-sum"}), rule = h("div", {class: "tgx-rule-line"});
  const one = h("div", {class: "tgx-note"}), legend = h("div", {class: "tgx-legend tgx-inline"});
  ui.root.append(box, h("div", {class: "tgx-bar"}, facts, h("div", {class: "tgx-row"},
    Object.keys(ui.data.special).length ? h("span", {class: "tgx-row"}, h("span", {class: "tgx-note"}, Object.keys(ui.data.special)[0] + " is"), special) : "", below, back)),
    ...(code.n_rules ? [steps, rule] : []), chips, one, legend, ui.said);
  const tell = (token) => (one.textContent = token ? `${visible(code.name(token.id))} · id ${token.id} · bytes ${code.hex(token.id)}` : "");
  let last = [], n = 0;
  for (const kind of ["pointerover", "click"]) chips.addEventListener(kind, (e) => e.pointerType === "touch" && kind !== "click" || tell(last[e.target.closest("[data-i]")?.dataset.i]));

  return ({text, step, below: shown, special: mode}) => {
    if (box.value !== text) box.value = text;
    below.sync();
    special.sync();
    back.sync();
    const whole = code.encode(text, mode === "token");
    n = whole.fired.length;
    const at = step == null ? n : clamp(step, 0, n);
    const {tokens} = at < n ? code.encode(text, mode === "token", whole.fired[at]) : whole;
    steps.sync(n, at);
    const latest = at ? whole.fired[at - 1] : -1;
    if (latest >= 0) {
      const [a, b, made] = code.rule(latest);
      rule.replaceChildren(`Rule ${latest} of ${code.n_rules}: `, h("b", {}, brief(code.name(a))), " + ", h("b", {}, brief(code.name(b))), " → ", h("b", {}, brief(code.name(made))));
    } else rule.textContent = n ? "No rule yet: every byte is a token." : "No rule applies to this text.";
    last = tokens;
    const MOST = 600;
    chips.replaceChildren(...tokens.slice(0, MOST).flatMap((token, i) => [h("span", {
      class: `tgx-chip tgx-tint${token.piece % 4}${token.special ? " tgx-special" : ""}${token.rank === latest && latest >= 0 ? " tgx-fresh" : ""}${token.id < 0 ? " tgx-bad" : ""}`,
      role: "listitem", "data-i": i}, h("span", {class: "tgx-word"}, brief(code.name(token.id), 24)), h("small", {}, shown === "ids" ? (token.id < 0 ? "none" : String(token.id)) : code.hex(token.id))), "\u200b"]));
    if (tokens.length > MOST) chips.append(h("span", {class: "tgx-note"}, ` and ${tokens.length - MOST} more`));
    const fresh = chips.querySelector(".tgx-fresh");
    if (fresh) reveal(chips, fresh);
    const bytes = code.n_bytes(text), per = tokens.length ? (bytes / tokens.length).toFixed(2) : "0";
    facts.replaceChildren(h("b", {}, String(tokens.length)), ` token${tokens.length === 1 ? "" : "s"} · `, h("b", {}, String(bytes)), ` bytes · `, h("b", {}, per), " bytes a token");
    tell(null);
    legend.replaceChildren(h("span", {class: "tgx-note"}, `Colours: pieces that no rule joins.${code.n_rules ? " Frame: what the latest rule made." : ""}`), ...dots([text]));
    ui.say(tokens.length ? `${tokens.length} tokens for ${bytes} bytes${n ? `, after ${at} of ${n} rules` : ""}.` : "Type some text.");
  };
};
