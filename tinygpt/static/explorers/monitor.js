// needs: chart
// A run over its rungs: loss, learning rate, gradient, and what the model wrote on the way.
KINDS.monitor = (ui) => {
  const steps = slider(ui, "at", "Step", {min: 0, max: 1, format: (n) => n.toLocaleString("en")});
  const play = button("Replay", () => (timer ? stop() : begin())), head = h("div", {class: "tgx-name"}), facts = h("div", {class: "tgx-sum"});
  const plots = h("div"), sample = h("div", {class: "tgx-text tgx-sample", tabindex: "0", role: "group", "aria-label": "what the model wrote"}), log = h("div", {class: "tgx-note"});
  ui.root.append(h("div", {class: "tgx-bar"}, head, facts), h("div", {class: "tgx-steps"}, play, steps), plots, sample, log, ui.said);
  let timer = 0;
  const last = () => ui.data.rows.reduce((most, row) => Math.max(most, row.step), 0);
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Replay"; };
  const begin = () => { // ten seconds from the first step to the last, on slow machines too
    const from = ui.state.at == null || ui.state.at >= last() ? 0 : ui.state.at, began = performance.now() - (1e4 * from) / last();
    play.textContent = "Stop";
    timer = setInterval(() => {
      if (!ui.root.isConnected) return stop();
      const at = Math.round((last() * (performance.now() - began)) / 1e4);
      if (at >= last()) { stop(); ui.set({at: null}); } else ui.set({at});
    }, 60);
  };

  const paint = (state) => {
    const {rows, rungs, total, samples, said} = ui.data, W = ui.width, end = last(), at = state.at == null ? end : Math.min(state.at, end);
    const passed = rows.filter((row) => row.step <= at), train = passed.filter((row) => "loss" in row), checks = passed.filter((row) => row.val_bits_per_byte != null);
    steps.sync(Math.max(end, 1), at);
    steps.hidden = play.hidden = end === 0;
    const column = (name) => rows.map((row) => row[name]).filter((v) => Number.isFinite(v) && v > 0);
    const names = Object.entries(rungs ?? {}).filter(([name]) => name !== "uniform").map(([name, y]) => ({name, y}));
    const bits = [...column("bits_per_byte"), ...column("val_bits_per_byte"), ...names.map((r) => r.y)];
    const now = train.at(-1), check = checks.at(-1), x = {min: 0, max: Math.max(total || end, 1)};
    const line = (name, from = train) => from.map((row) => [row.step, row[name]]);
    const high = names.length ? Math.max(...names.map((r) => r.y)) : Infinity;
    head.textContent = ui.data.title;
    facts.replaceChildren(...(now ? ["step ", h("b", {}, at.toLocaleString("en")), total ? ` of ${total.toLocaleString("en")}` : "", " · ", h("b", {}, (check?.val_bits_per_byte ?? now.bits_per_byte).toFixed(3)), " bits per byte",
      ...(rungs ? [" · floor ", h("b", {}, rungs.floor.toFixed(3))] : []), ...(now.tokens_per_s ? [` · ${short(now.tokens_per_s)} tokens/s`] : [])] : ["waiting for the first step"]));
    const two = W > 620, width = two ? Math.floor(W / 2) - 8 : W;
    plots.replaceChildren(...(bits.length ? [
      chart({width: W, height: 240, x, y: {min: Math.min(...bits) * 0.94, max: Math.min(Math.max(...bits), high * 4) * 1.04, log: true, label: "bits per byte"}, rules: names, lines: [{points: line("bits_per_byte"), class: "tgx-thin"}, {points: line("val_bits_per_byte", checks), class: "tgx-warm"}],
        dots: checks.map((row) => ({x: row.step, y: row.val_bits_per_byte, class: "tgx-warm-dot", r: 2.6})), now: at < end ? at : null, label: "loss over its rungs"}),
      h("div", {class: "tgx-legend tgx-inline"}, h("span", {class: "tgx-key tgx-blue"}, "training"), h("span", {class: "tgx-key tgx-orange"}, "validation")),
      h("div", {class: "tgx-plots"}, [["lr", "learning rate"], ["grad_norm", "length of the gradient"]].filter(([name]) => column(name).length).map(([name, label]) =>
        chart({width, height: 120, x: {...x, label: "step"}, y: {min: 0, max: Math.max(...column(name)) * 1.1, label}, lines: [{points: line(name), class: name === "lr" ? "" : "tgx-thin"}], label})))] : []));
    const told = samples.filter((s) => s.step <= at).at(-1);
    sample.hidden = !told;
    if (told) sample.replaceChildren(h("span", {class: "tgx-note"}, `written at step ${told.step.toLocaleString("en")}: `), prose(told.text));
    log.textContent = said ? prose(said) : "";
    if (!timer) ui.say(now ? `Step ${at.toLocaleString("en")}: ${(check?.val_bits_per_byte ?? now.bits_per_byte).toFixed(3)} bits per byte${check ? " on the validation text" : ""}${rungs ? `, ${((check?.val_bits_per_byte ?? now.bits_per_byte) / rungs.floor).toFixed(2)} times the floor` : ""}.` : "No step yet.");
  };
  paint.reads = true;
  return paint;
};
