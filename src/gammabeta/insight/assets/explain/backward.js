/* Backward: the three paths of the picked channel's gradient, the Jacobian as a picture equation,
   and gradient norms with and without batch norm. */
"use strict";
(() => {
  const { num, t, css, html } = GB;
  const F = Formula;

  /* dx = γ/σ · (dy − mean(dy) − x̂·mean(dy·x̂)), and the same with the picked value's numbers. */
  function formula(c, at) {
    const b = c.backward;
    const ratio = (below, colour) => F.frac(F.row(F.mi("∂", colour), F.mi("L", colour)), F.row(F.mi("∂", colour), F.mi(below, colour)));
    const avg = (inside, colour) => F.row(`<mtext style="color:var(--${colour})">${t("paths.mean_of")}</mtext>`, F.mo("("), inside, F.mo(")"));
    const line = (left, right) => `<mtr><mtd style="text-align:right">${left}</mtd><mtd>${F.mo("=")}</mtd><mtd style="text-align:left">${right}</mtd></mtr>`;
    const symbols = F.row(F.frac(F.mi("γ"), F.mi("σ")), F.mo("("), ratio("y", "direct"), F.mo("−"), avg(ratio("y", "mean"), "mean"), F.mo("−"), F.xhat("variance"), F.mo("·"), avg(F.row(ratio("y", "variance"), F.mo("·"), F.xhat("variance")), "variance"), F.mo(")"));
    const n = (value, colour, key) => F.signed(value, F.mn(value, 4, colour, key));
    const numbers = F.row(F.mn(b.gamma_over_std, 4, null, "gamma_over_std"), F.mo("·"), F.mo("("), n(b.dy[at], "direct", "dy"), F.mo("−"), n(b.mean_dy, "mean", "mean_dy"), F.mo("−"), n(c.values.xhat[at], "variance"), F.mo("·"), n(b.mean_dy_xhat, "variance", "mean_dy_xhat"), F.mo(")"));
    return F.math(`<mtable displaystyle="true">${line(ratio("x"), symbols)}${line("", numbers)}${line("", F.mn(b.dx[at], 5, "sum", "dx"))}</mtable>`, true);
  }

  /* Signed bars on top of each other, and their sum as a diamond. */
  function stacked(parts, axis, labels) {
    const bar = (name) => ({ type: "bar", x: labels, y: parts[name], xaxis: `x${axis}`, yaxis: `y${axis}`, marker: { color: css(name) }, hovertemplate: `${t(`paths.${name}`)}: %{y:.4g}<extra></extra>` });
    return [bar("direct"), bar("mean"), bar("variance"), {
      type: "scatter", mode: "markers", x: labels, y: parts.dx, xaxis: `x${axis}`, yaxis: `y${axis}`, marker: { symbol: "diamond", size: 11, color: css("sum"), line: { color: css("card"), width: 1.5 } }, hovertemplate: "dx: %{y:.4g}<extra></extra>",
    }];
  }
  /* Constants have no path through them: with running statistics the direct one is all there is. */
  const still = (c) => c.statistics === "running";
  const alone = (c) => (still(c) ? c.backward : BatchNorm.backward(c.backward.dy, c.values.x, c.gamma ?? 1, c.eps));

  function paths() {
    const c = Pick.channel();
    const labels = c.values.x.map((_, i) => `x${"₁₂₃₄₅₆₇₈"[i]}`);
    const low = GB.narrow();
    const title = (text, x, y) => ({ text, xref: "paper", yref: "paper", x, y, xanchor: "left", yanchor: "bottom", showarrow: false, font: { color: css("text") } });
    const compact = { exponentformat: "power", nticks: 5 };
    return {
      traces: [...stacked(c.backward, "", labels), ...stacked(alone(c), "2", labels)],
      layout: {
        barmode: "relative", margin: { l: 8, r: 8, t: 28, b: 8 },
        xaxis: { domain: low ? [0, 1] : [0, 0.45], anchor: "y" }, yaxis: { domain: low ? [0.6, 1] : [0, 1], ...compact },
        xaxis2: { domain: low ? [0, 1] : [0.57, 1], anchor: "y2" }, yaxis2: { domain: low ? [0, 0.4] : [0, 1], anchor: "x2", ...compact },
        annotations: [title(t("paths.batch", { count: c.count.toLocaleString("en") }), 0, 1), title(t("paths.alone"), low ? 0 : 0.57, low ? 0.4 : 1)],
      },
      height: low ? 520 : 340,
    };
  }

  function table(c) {
    const b = c.backward;
    const line = (name, words) => html("tr", {}, html("th", { scope: "row", style: `color:var(--${name === "dx" || name === "dy" ? "sum" : name})` }, words), ...b[name].map((v) => html("td", { "data-row": name, "data-value": v }, num(v, 4))));
    GB.byId("paths-table").replaceChildren(
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, ""), ...b.dx.map((_, i) => html("th", { scope: "col" }, `x${"₁₂₃₄₅₆₇₈"[i]}`)))),
      html("tbody", {}, line("dy", "∂L/∂y"), line("direct", t("paths.direct")), line("mean", t("paths.mean")), line("variance", t("paths.variance")), line("dx", "∂L/∂x")));
    GB.byId("paths-table").querySelector("th").textContent = "#";
  }

  function show() {
    const c = Pick.channel();
    if (!c.backward) {
      GB.byId("paths-formula").textContent = t("paths.none");
      GB.byId("paths-table").replaceChildren();
      GB.numbers("paths", t("paths.none"));
      return;
    }
    GB.byId("paths-formula").innerHTML = formula(c, Pick.picked.value);
    GB.plot("paths", paths);
    table(c);
    const b = c.backward;
    GB.numbers("paths", t("paths.numbers", { sum: num(b.sum_dx, 2), dot: num(b.dot_dx_xhat, 2), check: num(b.check?.max_error, 2) }));
    Jacobian.show("jacobian", c.values.x, c.gamma ?? 1, c.eps, b.small, still(c));
    const off = Math.max(...b.jacobian.flatMap((row, i) => row.filter((_, j) => i !== j).map(Math.abs)));
    GB.numbers("jacobian", t("jacobian.numbers", { count: c.count.toLocaleString("en"), off: num(off, 2), diagonal: num(b.gamma_over_std, 3) }));
  }
  if (Pick.any && GB.byId("paths")) Pick.subscribe(show);

  const gradients = GB.data.gradients;
  if (!gradients) return;
  const where = gradients.layers.map((l) => l.path.replace(/\.weight$/, ""));
  const trace = (key, colour, symbol) => ({
    type: "scatter", mode: "lines+markers", name: t(`gradients.${key}`), x: where, y: gradients.layers.map((l) => l[key]),
    line: { color: css(colour), width: 2 }, marker: { color: css(colour), size: 9, symbol }, hovertemplate: "%{x}<br>%{y:.3g}<extra></extra>",
  });
  GB.plot("gradients", () => ({
    traces: [trace("with", "c4", "circle"), trace("without", "c2", "square")],
    layout: { yaxis: GB.logAxis(t("gradients.axis"), gradients.layers.flatMap((l) => [l.with, l.without])), xaxis: GB.layerAxis(where) },
    height: 360,
  }));
  const spread = (key) => {
    const norms = gradients.layers.map((l) => l[key]).filter((v) => v > 0);
    return num(Math.max(...norms) / Math.min(...norms), 3);
  };
  GB.numbers("gradients", t("gradients.numbers", { with: spread("with"), without: spread("without"), loss: num(gradients.loss, 4), loss_without: num(gradients.loss_without, 4) }));
})();
