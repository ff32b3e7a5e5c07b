// Who wrote which token: the draft, or the model that checks it; round by round.
KINDS.speculation = (ui) => {
  const {tokens, prompt, rounds} = ui.data, n = rounds.length;
  const steps = slider(ui, "round", "Rounds", {min: 0, max: n, format: (i) => `${i} of ${n}`});
  const strip = h("div", {class: "tgx-chips", role: "list", "aria-label": "the text, token by token"}), facts = h("div", {class: "tgx-sum"});
  const kinds = {draft: "drafted and kept", corrected: "the model's own, instead of a drafted one", bonus: "the model's own, after a draft that was kept whole"};
  ui.root.append(h("div", {class: "tgx-bar"}, h("div", {class: "tgx-name"}, ui.data.title), facts), steps, strip,
    h("div", {class: "tgx-legend tgx-inline"}, h("span", {class: "tgx-key tgx-green"}, kinds.draft), h("span", {class: "tgx-key tgx-orange"}, kinds.corrected), h("span", {class: "tgx-key tgx-blue"}, kinds.bonus), h("span", {class: "tgx-key tgx-grey"}, "drafted and refused"), ...dots(tokens)), ui.said);
  const chip = (text, kind, label) => h("span", {class: `tgx-chip ${kind}`, role: "listitem", title: label, "aria-label": `${visible(text)}, ${label}`}, h("span", {class: "tgx-word"}, brief(text, 24)));
  return (state) => {
    const at = clamp(state.round ?? n, 0, n);
    steps.sync(n, at);
    let written = 0, drafted = 0, kept = 0;
    const parts = [...prompt.map((i) => chip(tokens[i], "tgx-plain", "prompt"))];
    rounds.slice(0, at).forEach((round, r) => {
      const group = h("span", {class: `tgx-round${r === at - 1 ? " tgx-fresh" : ""}`});
      round.drafted.forEach((id, i) => group.append(chip(tokens[id], i < round.kept ? "tgx-by-draft" : "tgx-refused", i < round.kept ? kinds.draft : "drafted and refused")));
      const kind = round.kept < round.drafted.length ? "corrected" : "bonus";
      if (round.token != null) group.append(chip(tokens[round.token], `tgx-by-${kind}`, kinds[kind]));
      parts.push(group);
      written += round.kept + (round.token != null);
      drafted += round.drafted.length;
      kept += round.kept;
    });
    strip.replaceChildren(...parts.flatMap((part) => [part, "\u200b"]));
    facts.replaceChildren(h("b", {}, String(written)), " tokens in ", h("b", {}, String(at)), " calls");
    ui.say(at ? `${written} tokens in ${at} calls of the model, ${(written / at).toFixed(2)} a call; ${kept} of ${drafted} drafted tokens were kept.` : "Nothing is written yet.");
  };
};
