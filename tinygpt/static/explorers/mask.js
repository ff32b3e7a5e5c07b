// Where the loss counts, token by token.
KINDS.mask = (ui) => {
  const {tokens, ids, mask} = ui.data, T = tokens.length;
  const pick = slider(ui, "token", "Token", {min: 0, max: Math.max(T - 1, 0), format: (i) => `${i} of ${T - 1}`});
  const chips = h("div", {class: "tgx-chips", role: "list", "aria-label": "tokens"}), n = mask.filter(Boolean).length;
  const spans = tokens.map((text, i) => h("span", {class: `tgx-chip ${mask[i] ? "tgx-counts" : "tgx-plain"}`, role: "listitem", "data-i": i, "aria-label": `${visible(text)}: ${mask[i] ? "counts" : "does not count"}`}, h("span", {class: "tgx-word"}, brief(text, 24)), h("small", {}, String(ids[i]))));
  chips.append(...spans.flatMap((span, i) => (tokens[i].endsWith("\n") ? [span, h("br")] : [span, "\u200b"])));
  const look = (e) => { const at = e.target.closest("[data-i]"); if (at && Number(at.dataset.i) !== ui.state.token) ui.set({token: Number(at.dataset.i)}); };
  chips.addEventListener("pointerover", (e) => e.pointerType === "touch" || look(e));
  chips.addEventListener("click", look);
  ui.root.append(h("div", {class: "tgx-bar"}, h("div", {class: "tgx-name"}, ui.data.title), h("div", {class: "tgx-sum"}, h("b", {}, String(n)), ` of ${T} tokens count`)), chips, pick,
    h("div", {class: "tgx-legend tgx-inline"}, h("span", {class: "tgx-key tgx-green"}, "the loss counts: the model learns to write this"), h("span", {class: "tgx-key tgx-grey"}, "it only reads this"), ...dots(tokens)), ui.said);
  return ({token}) => {
    pick.sync();
    spans.forEach((span, i) => span.classList.toggle("tgx-fresh", i === token));
    if (T) reveal(chips, spans[token]);
    const before = token ? `, from the ${token} token${token > 1 ? "s" : ""} before it` : "";
    ui.say(!T ? "No tokens." : `${quoted(tokens[token])} at ${token}, id ${ids[token]}: ${mask[token] ? `the model learns to write it${before}.` : "the model reads it, and is not asked to write it."}`);
  };
};
