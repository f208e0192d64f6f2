/* Every BN layer at a glance: one row a layer, six small drawings a row, all to be compared down
   the page. Drawings are stretched SVG paths (dots are strokes of no length), so that a network of
   fifty layers stays light; the words and numbers are HTML. */
"use strict";
(() => {
  const rows = GB.byId("layer-rows");
  if (!rows) return;
  const SHOWN = 12;
  const W = 100, H = 50;
  const { num, percent, svg, html, t } = GB;

  const path = (d, colour, width, extra = {}) =>
    svg("path", { d, stroke: `var(--${colour})`, "stroke-width": width, fill: "none", "stroke-linecap": "round", "vector-effect": "non-scaling-stroke", ...extra });
  const drawing = (name, ...children) =>
    svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": name }, ...children.filter(Boolean));
  const cell = (key, picture, words) =>
    html("figure", { class: "cell", "data-cell": key }, html("span", { class: "cell-name" }, t(`cells.${key}`)), picture ?? html("p", { class: "none" }, "–"), html("figcaption", {}, words ?? ""));
  const known = (values) => (values ?? []).filter((v) => v !== null);
  const median = (values) => {
    const sorted = known(values).sort((a, b) => a - b);
    return sorted.length ? (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2 : null;
  };
  const f = (value) => value.toFixed(2);

  /* Bands of channels: 5 to 95 % thin, the middle half thick, the median a dot. */
  function bands(key, quantiles, order, colour) {
    if (!quantiles || !order.length) return cell(key);
    const low = Math.min(...order.map((i) => quantiles[i][0]));
    const high = Math.max(...order.map((i) => quantiles[i][4]));
    const span = high - low || 1;
    const x = (at) => f(((at + 0.5) / order.length) * W);
    const y = (v) => f(H - 3 - ((v - low) / span) * (H - 6));
    const stroke = (a, b) => order.map((i, at) => `M${x(at)} ${y(quantiles[i][a])}V${y(quantiles[i][b])}`).join("");
    const wide = Math.max(1.2, Math.min(5, 110 / order.length));
    const zero = low < 0 && high > 0 ? path(`M0 ${y(0)}H${W}`, "soft", 1, { "stroke-dasharray": "2 3" }) : null;
    const dots = order.map((i, at) => `M${x(at)} ${y(quantiles[i][2])}h0`).join("");
    const words = t("cells.range", { low: num(low, 3), high: num(high, 3) });
    return cell(key, drawing(`${t(`cells.${key}`)}: ${words}`, zero, path(stroke(0, 4), colour, Math.max(0.7, wide / 3)), path(stroke(1, 3), colour, wide, { "stroke-linecap": "butt", opacity: 0.75 }), path(dots, "card", Math.max(1, wide * 0.6))), words);
  }

  /* Dots about a cross: (x, y) scaled so that the farthest still shows. */
  function cloud(key, groups, centre, words) {
    const all = groups.flatMap((g) => g.points);
    if (!all.length) return cell(key);
    const reach = (axis, least) => Math.max(least, ...all.map((p) => Math.abs(p[axis] - centre[axis])));
    const rx = reach(0, 0.05), ry = reach(1, 0.05);
    const at = ([x, y]) => `M${f(W / 2 + ((x - centre[0]) / rx) * (W / 2 - 4))} ${f(H / 2 - ((y - centre[1]) / ry) * (H / 2 - 4))}h0`;
    const cross = path(`M0 ${H / 2}H${W}M${W / 2} 0V${H}`, "line", 1);
    return cell(key, drawing(`${t(`cells.${key}`)}: ${words}`, cross, ...groups.map((g) => path(g.points.map(at).join(""), g.colour, all.length > 150 ? 2.5 : 4, { opacity: 0.8 }))), words);
  }

  function parameters(p) {
    if (!p.weight) return cell("parameters", null, t("cells.no_affine"));
    const points = p.weight.map((g, i) => [g, p.bias?.[i] ?? 0]);
    const words = t("cells.gamma_beta", { gl: num(Math.min(...p.weight), 2), gh: num(Math.max(...p.weight), 2), bl: num(Math.min(...(p.bias ?? [0])), 2), bh: num(Math.max(...(p.bias ?? [0])), 2) });
    return cloud("parameters", [{ points, colour: "c4" }], [1, 0], words);
  }

  /* How far other statistics lie from the batch's: (Δmean / σ, log2 of the variances' ratio). */
  function apart(p, eps, mean, variance) {
    if (!mean || !variance || !p.batch_mean) return [];
    return mean.map((m, i) => [(m - p.batch_mean[i]) / Math.sqrt(p.batch_var[i] + eps), Math.log2((variance[i] + eps) / (p.batch_var[i] + eps))]).filter((q) => q.every(Number.isFinite));
  }
  function statistics(layer, p) {
    const running = apart(p, layer.eps, p.running_mean, p.running_var);
    const population = apart(p, layer.eps, p.population_mean, p.population_var);
    if (!running.length && !population.length) return cell("statistics", null, t("cells.no_running"));
    const of = running.length ? running : population;
    const words = t("cells.apart", { mean: num(median(of.map((q) => Math.abs(q[0]))), 2), var: num(2 ** median(of.map((q) => Math.abs(q[1]))), 3) });
    return cloud("statistics", [{ points: population, colour: "c3" }, { points: running, colour: "c1" }].filter((g) => g.points.length), [0, 0], words);
  }

  /* Shares of zeros, sorted: the higher the hill, the more is switched off; dead channels in red. */
  function dead(layer, p) {
    const shares = known(p.dead).sort((a, b) => b - a);
    if (!shares.length || !layer.activation) return cell("dead", null, t("cells.no_activation"));
    const gone = shares.filter((s) => s >= 1).length;
    const x = (i) => f((i / shares.length) * W);
    const area = (list, from) => list.map((s, i) => `M${x(from + i + 0.5)} ${H}V${f(H - s * (H - 2))}`).join("");
    const wide = Math.max(1, Math.min(8, 150 / shares.length));
    const saturated = median(p.saturated);
    const words = t("cells.dead_words", { gone, all: shares.length, share: percent(median(shares)) }) + (saturated ? ` ${t("cells.saturated", { share: percent(saturated) })}` : "");
    return cell("dead", drawing(words, path(`M0 ${H / 2}H${W}`, "line", 1), path(area(shares.slice(gone), gone), "act", wide, { "stroke-linecap": "butt" }), gone ? path(area(shares.slice(0, gone), 0), "bad", wide, { "stroke-linecap": "butt" }) : null), words);
  }

  /* Values that a statistic has, and how many independent ones they are worth (logarithmic). */
  function noise(layer) {
    const n = layer.noise;
    if (!n) return cell("noise");
    const worth = Math.min(n.effective_values ?? layer.values, layer.values); // the estimate itself is noisy
    const length = (v) => f((Math.log10(Math.max(1, v)) / Math.log10(Math.max(10, layer.values))) * W + 1);
    const bar = (y, v, colour) => path(`M0 ${y}H${length(v)}`, colour, 9, { "stroke-linecap": "butt" });
    const words = t("cells.noise_words", { values: layer.values.toLocaleString("en"), worth: num(Math.round(worth), 3), error: percent(n.mean_measured ?? n.mean, 1) });
    return cell("noise", drawing(words, bar(15, layer.values, "line"), bar(33, worth, "c1")), words);
  }

  function head(layer) {
    const name = layer.channels.length
      ? html("button", { type: "button", class: "link", title: t("layers.look"), onclick: () => { Pick.byPath(layer.path); GB.byId("formula").scrollIntoView(); GB.byId("pick-layer").focus({ preventScroll: true }); } }, layer.path)
      : layer.path;
    return html("div", { class: "layer-head" }, html("h3", {}, name),
      html("p", { class: "small" }, t(layer.activation ? "layers.facts" : "layers.facts_plain", { kind: layer.kind, channels: layer.num_features, activation: layer.activation }), layer.frozen ? ` · ${t("layers.frozen")}` : ""));
  }

  function row(layer) {
    const p = layer.per_channel ?? {};
    const q = layer.quantiles ?? {};
    const order = (q.before ?? []).map((_, i) => i).filter((i) => q.before[i].every((v) => v !== null)).sort((a, b) => q.before[a][2] - q.before[b][2]);
    return html("li", { class: "layer-row", "data-layer": layer.path }, head(layer),
      bands("before", q.before, order, "x"), bands("after", q.after, order, "out"), parameters(p), statistics(layer, p), dead(layer, p), noise(layer));
  }

  const layers = GB.data.layers;
  const heading = html("li", { class: "layer-row heading", "aria-hidden": "true" }, html("span"), ...["before", "after", "parameters", "statistics", "dead", "noise"].map((key) => html("span", {}, t(`cells.${key}`))));
  rows.append(heading, ...layers.slice(0, SHOWN).map(row));
  if (layers.length > SHOWN) {
    const more = GB.byId("more-layers");
    more.hidden = false;
    more.querySelector("summary").textContent = t("layers.more", { n: layers.length - SHOWN });
    GB.byId("more-layer-rows").append(...layers.slice(SHOWN).map(row));
  }

  /* The noise of every layer's mean, measured and as it would be if the values were independent. */
  const noisy = layers.filter((layer) => layer.noise && layer.noise.mean);
  const line = (values, name, colour, dash) => ({
    type: "scatter", mode: "lines+markers", name, x: noisy.map((l) => l.path), y: values, line: { color: GB.css(colour), dash, width: 2 }, marker: { size: 8, color: GB.css(colour) },
    hovertemplate: "%{x}<br>%{y:.3g} σ<extra></extra>",
  });
  if (noisy.length) {
    GB.plot("noise", () => ({
      traces: [
        noisy.some((l) => l.noise.mean_measured !== null) ? line(noisy.map((l) => l.noise.mean_measured), t("noise.measured"), "c1", "solid") : null,
        line(noisy.map((l) => l.noise.mean), t("noise.independent"), "c2", "dot"),
      ].filter(Boolean),
      layout: { showlegend: true, yaxis: GB.logAxis(t("noise.axis"), noisy.flatMap((l) => [l.noise.mean, l.noise.mean_measured])), xaxis: GB.layerAxis(noisy.map((l) => l.path)) },
    }));
    const worst = noisy.reduce((a, b) => ((b.noise.mean_measured ?? b.noise.mean) > (a.noise.mean_measured ?? a.noise.mean) ? b : a));
    GB.numbers("noise", t("noise.numbers", { layer: worst.path, error: percent(worst.noise.mean_measured ?? worst.noise.mean, 1) }));
  } else {
    GB.byId("noise").closest(".card").remove();
  }
})();
