/* The playground: the reader's own small batch. Reads the inputs, calls the pure functions of
   batchnorm.js, draws. Nothing is computed here that batchnorm.js does not compute. */
"use strict";
const Playground = (() => {
  const { num, t, css, html, svg, byId } = GB;
  const SUB = "₁₂₃₄₅₆₇₈";
  const START = { x: [2.1, -0.4, 1.3, 3.2, 0.6, -1.7, 1, 2.5], dy: [1, 0, 0, 0, 0, 0, 0, 0] };
  const state = { ...structuredClone(START), size: 8, gamma: 1.5, beta: 0.5, eps: 1e-5, momentum: 0.1, reach: 6, running: { mean: 0, var: 1 }, history: [{ mean: 0, var: 1 }] };

  const batch = () => state.x.slice(0, state.size);
  const upstream = () => state.dy.slice(0, state.size);

  /* All that the page shows of the state; the tests read this too. */
  function compute() {
    const x = batch();
    const forward = BatchNorm.forward(x, state.gamma, state.beta, state.eps);
    return {
      ...forward, backward: BatchNorm.backward(upstream(), x, state.gamma, state.eps),
      next: BatchNorm.updateRunning(state.running, forward, x.length, state.momentum),
    };
  }

  /* --- inputs ------------------------------------------------------------------------------ */
  function editors(id, key, names) {
    byId(id).replaceChildren(...state[key].map((value, i) => {
      const number = html("input", { type: "number", step: "any", "aria-label": names(i), "data-index": i, value });
      const slide = html("input", { type: "range", min: -state.reach, max: state.reach, step: state.reach / 240, "aria-label": names(i), "data-index": i, value });
      const change = (source, other) => source.addEventListener("input", () => {
        if (source.value === "" || !Number.isFinite(source.valueAsNumber)) return;
        state[key][i] = source.valueAsNumber;
        other.value = source.valueAsNumber;
        update();
      });
      change(number, slide);
      change(slide, number);
      return html("div", { class: "editor" }, html("span", { "aria-hidden": "true" }, names(i)), number, slide);
    }));
    byId(id).dataset.key = key;
  }
  function refill() {
    editors("play-inputs", "x", (i) => `x${SUB[i]}`);
    editors("play-dy", "dy", (i) => `∂L/∂y${SUB[i]}`);
    for (const key of ["gamma", "beta", "eps", "momentum"]) {
      byId(`play-${key}`).value = state[key];
      byId(`play-${key}-slide`).value = key === "eps" ? Math.log10(state.eps) : state[key];
    }
    byId("play-size").value = String(state.size);
  }
  function scalar(key, low, high, fromSlide = (v) => v, toSlide = (v) => v) {
    const number = byId(`play-${key}`), slide = byId(`play-${key}-slide`);
    number.addEventListener("input", () => {
      const value = number.valueAsNumber;
      if (!Number.isFinite(value) || value < low || value > high) return;
      state[key] = value;
      slide.value = toSlide(value);
      update();
    });
    slide.addEventListener("input", () => {
      state[key] = fromSlide(slide.valueAsNumber);
      number.value = state[key];
      update();
    });
  }

  /* --- presets ----------------------------------------------------------------------------- */
  const clean = (v) => Number(v.toPrecision(5));
  function presets() {
    const list = { start: () => START };
    if (Pick.any) list.real = real;
    return {
      ...list,
      shifted: () => ({ x: START.x.map((v) => clean(v + 3)), dy: START.dy }),
      stretched: () => ({ x: START.x.map((v) => clean(v * 2)), dy: START.dy }),
      outlier: () => ({ x: [0.5, 0.7, 0.6, 0.4, 0.5, 0.6, 0.5, 6], dy: START.dy }),
      constant: () => ({ x: Array(8).fill(2), dy: START.dy }),
      pair: () => ({ x: [3, 3.01, 1, 1, 1, 1, 1, 1], dy: START.dy, size: 2 }),
      even: () => ({ x: START.x, dy: Array(8).fill(1) }),
    };
  }
  /* The picked channel's eight real values, with its γ, β, ε and the gradients that reached it. */
  function real() {
    const c = Pick.channel();
    const most = Math.max(...(c.backward?.dy ?? [0]).map(Math.abs));
    const dy = most > 0 ? c.backward.dy.map((v) => clean(v / most)) : START.dy; // to the length of one: their size is the loss's
    return { x: c.values.x.map(clean), dy, gamma: clean(c.gamma ?? 1), beta: clean(c.beta ?? 0), eps: c.eps };
  }
  function choose(name) {
    const preset = presets()[name]();
    Object.assign(state, { size: 8, gamma: 1.5, beta: 0.5, eps: 1e-5 }, structuredClone(preset));
    const most = Math.max(...state.x.map(Math.abs), ...state.dy.map(Math.abs), 1);
    state.reach = [6, 12, 30, 100, 1000].find((r) => most <= r) ?? most * 2;
    reset();
    refill();
    update();
  }

  /* --- running statistics ------------------------------------------------------------------ */
  function feed(times) {
    for (let i = 0; i < times; i += 1) {
      const next = compute().next;
      if (!next) return;
      state.running = next;
      state.history.push(next);
    }
    update();
  }
  function reset() {
    state.running = { mean: 0, var: 1 };
    state.history = [{ ...state.running }];
  }

  /* --- what is shown ----------------------------------------------------------------------- */
  function facts(id, pairs) {
    byId(id).replaceChildren(...pairs.map(([name, value, colour]) =>
      html("div", {}, html("dt", {}, name), html("dd", { "data-key": name, "data-value": value, style: `color:var(--${colour})` }, num(value, 5)))));
  }
  function table(r) {
    const heads = r.xhat.map((_, i) => html("th", { scope: "col" }, String(i + 1)));
    const line = (name, values, colour) => html("tr", {}, html("th", { scope: "row", style: `color:var(--${colour})` }, name), ...values.map((v) => html("td", { "data-row": name, "data-value": v }, num(v, 4))));
    byId("play-table").replaceChildren(
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "#"), ...heads)),
      html("tbody", {}, line("x", batch(), "x"), line("x − μ", batch().map((v) => v - r.mean), "mean"), line("x̂", r.xhat, "norm"), line("y", r.y, "out"), line("∂L/∂y", upstream(), "sum"), line("∂L/∂x", r.backward.dx, "direct")));
  }
  function bars(r) {
    const labels = r.xhat.map((_, i) => `x${SUB[i]}`);
    const b = r.backward;
    const bar = (name) => ({ type: "bar", x: labels, y: b[name], marker: { color: css(name) }, hovertemplate: `${t(`paths.${name}`)}: %{y:.4g}<extra></extra>` });
    GB.plot("play-paths", () => ({
      traces: [bar("direct"), bar("mean"), bar("variance"), { type: "scatter", mode: "markers", x: labels, y: b.dx, marker: { symbol: "diamond", size: 12, color: css("sum"), line: { color: css("card"), width: 1.5 } }, hovertemplate: "∂L/∂x: %{y:.4g}<extra></extra>" }],
      layout: { barmode: "relative", yaxis: { nticks: 6, exponentformat: "power" } },
      height: 300,
    }));
    const total = b.dx.reduce((a, v) => a + v, 0);
    GB.numbers("play-paths", t("play_backward.numbers", { sum: num(Math.abs(total) < 1e-12 ? 0 : total, 2), dgamma: num(b.dgamma, 4), dbeta: num(b.dbeta, 4) }));
  }
  function history() {
    const steps = state.history.map((_, i) => i);
    const line = (key, colour) => ({ type: "scatter", mode: "lines+markers", name: t(`running.${key}`), x: steps, y: state.history.map((h) => h[key]), line: { color: css(colour), width: 2 }, marker: { color: css(colour), size: 7 }, hovertemplate: "%{y:.4g}<extra></extra>" });
    const r = compute();
    const target = (value, colour) => ({ type: "scatter", mode: "lines", x: [0, Math.max(5, steps.length)], y: [value, value], line: { color: css(colour), dash: "dot", width: 1.5 }, showlegend: false, hoverinfo: "skip" });
    const unbiased = (r.var * state.size) / (state.size - 1);
    GB.plot("running", () => ({
      traces: [line("mean", "mean"), line("var", "variance"), target(r.mean, "mean"), target(unbiased, "variance")],
      layout: { showlegend: true, xaxis: { title: { text: t("running.axis") }, range: [-0.2, Math.max(5, steps.length)], zeroline: false } },
      height: 300,
    }));
    GB.numbers("running", t("running.numbers", { mean: num(state.running.mean, 4), var: num(state.running.var, 4), next_mean: num(r.next?.mean, 4), next_var: num(r.next?.var, 4), unbiased: num(unbiased, 4), biased: num(r.var, 4) }));
  }

  function update() {
    const r = compute();
    byId("play-inputs").querySelectorAll(".editor").forEach((node, i) => node.classList.toggle("off", i >= state.size));
    byId("play-dy").querySelectorAll(".editor").forEach((node, i) => node.classList.toggle("off", i >= state.size));
    document.querySelectorAll("#playground .editor input").forEach((input) => { input.disabled = Number(input.dataset.index) >= state.size; });
    facts("play-facts", [["E[x]", r.mean, "mean"], ["Var[x]", r.var, "variance"], ["√(Var[x]+ε)", r.std, "variance"]]);
    facts("play-grads", [["∂L/∂γ", r.backward.dgamma, "c1"], ["∂L/∂β", r.backward.dbeta, "c1"]]);
    table(r);
    GB.draw("rulers", () => Rulers.draw(byId("rulers"), state, compute(), moved));
    GB.numbers("rulers", t("rulers.numbers", { mean: num(r.mean, 4), std: num(r.std, 4), var: num(r.xhat.reduce((s, v) => s + v * v, 0) / r.xhat.length, 4), most: num(Math.sqrt(state.size - 1), 4) }));
    bars(r);
    Jacobian.show("play-jacobian", batch(), state.gamma, state.eps);
    GB.numbers("play-jacobian", t("play_jacobian.numbers", { scale: num(state.gamma / r.std, 4) }));
    history();
  }
  /* A dot of the first ruler was dragged. */
  function moved(i, value) {
    state.x[i] = clean(value);
    byId("play-inputs").querySelectorAll(`[data-index="${i}"]`).forEach((input) => { input.value = state.x[i]; });
    update();
  }

  function begin() {
    byId("play-preset").append(...Object.keys(presets()).map((name) => html("option", { value: name }, t(`presets.${name}`))));
    byId("play-preset").addEventListener("change", (event) => choose(event.target.value));
    byId("play-size").addEventListener("change", (event) => { state.size = Number(event.target.value); update(); });
    scalar("gamma", -1e6, 1e6);
    scalar("beta", -1e6, 1e6);
    scalar("eps", 0, 1e6, (v) => Number((10 ** v).toPrecision(2)), (v) => Math.log10(Math.max(v, 1e-8)));
    scalar("momentum", 0, 1);
    byId("play-feed").addEventListener("click", () => feed(1));
    byId("play-feed-10").addEventListener("click", () => feed(10));
    byId("play-reset").addEventListener("click", () => { reset(); update(); });
    new ResizeObserver(() => Rulers.draw(byId("rulers"), state, compute(), moved)).observe(byId("rulers"));
    refill();
    update();
  }
  begin();
  return { state, compute, choose };
})();
