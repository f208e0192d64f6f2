/* One shape, several rulers: the picked channel before, normalised, after and activated. The axes
   are affine images of each other, so that bars stand exactly below each other and only the
   numbers on the ruler change. */
"use strict";
(() => {
  if (!Pick.any) return;
  const FAR = 5; // standard deviations shown; a few values may lie beyond
  const KINDS = [["x", "x"], ["xhat", "norm"], ["y", "out"], ["z", "act"]];

  /* The axis of each kind, from that of x: x̂ = (x − mean)/σ, y = γ·x̂ + β (reversed if γ < 0). */
  function ranges(c) {
    const edges = c.histograms.x.edges;
    const ends = [Math.max(edges[0], c.mean - FAR * c.std), Math.min(edges[edges.length - 1], c.mean + FAR * c.std)];
    const hats = ends.map((x) => (x - c.mean) / c.std);
    const y = hats.map((h) => (c.gamma ?? 1) * h + (c.beta ?? 0));
    const flat = Math.abs(y[1] - y[0]) < 1e-12;
    const after = flat ? [y[0] - 1, y[0] + 1] : y;
    return { x: ends, xhat: hats, y: after, z: after };
  }

  /* Heights as shares per unit of the ruler; a spike higher than the rest is cut and told. */
  function bars(histogram, range) {
    const { edges, counts } = histogram;
    const total = counts.reduce((a, b) => a + b, 0) || 1;
    const span = Math.abs(range[1] - range[0]) || 1;
    const widths = counts.map((_, i) => edges[i + 1] - edges[i]);
    const heights = counts.map((n, i) => (widths[i] > 0 ? (n / total) * (span / widths[i]) : 0));
    const sorted = [...heights].sort((a, b) => b - a);
    const cut = sorted.length > 1 && sorted[1] > 0 && sorted[0] > 2.5 * sorted[1];
    const at = heights.indexOf(sorted[0]);
    return {
      heights, widths, centres: counts.map((_, i) => (edges[i] + edges[i + 1]) / 2), shares: counts.map((n) => n / total),
      top: 1.3 * (cut ? sorted[1] * 1.4 : sorted[0] || 1), spike: cut ? { at: (edges[at] + edges[at + 1]) / 2, share: counts[at] / total } : null,
    };
  }

  const labels = (c) => ({
    x: GB.t("histograms.x", { mean: GB.num(c.mean, 3), std: GB.num(Math.sqrt(c.var), 3) }),
    xhat: GB.t("histograms.xhat"),
    y: GB.t("histograms.y", { mean: GB.num(c.beta ?? 0, 3), std: GB.num(Math.abs(c.gamma ?? 1), 3) }),
    z: Pick.layer().activation ?? "",
  });

  function make() {
    const c = Pick.channel();
    const axes = ranges(c);
    const kinds = KINDS.filter(([name]) => c.histograms[name]);
    const traces = [];
    const layout = { bargap: 0, margin: { l: 8, r: 8, t: 22, b: 8 }, annotations: [], shapes: [] };
    const gap = 0.105;
    const high = (1 - gap * (kinds.length - 1) - 0.02) / kinds.length;
    kinds.forEach(([name, colour], i) => {
      const n = i ? i + 1 : "";
      const top = 1 - i * (high + gap);
      const b = bars(c.histograms[name], axes[name]);
      traces.push({
        type: "bar", x: b.centres, y: b.heights, width: b.widths, xaxis: `x${n}`, yaxis: `y${n}`, customdata: b.shares,
        marker: { color: GB.css(colour), line: { width: 0 } }, hovertemplate: "%{x:.4g}: %{customdata:.2%}<extra></extra>",
      });
      traces.push(ticks(c, name, n, b.top));
      layout[`xaxis${n}`] = { range: axes[name], anchor: `y${n}`, showgrid: false, zeroline: name !== "x" };
      layout[`yaxis${n}`] = { domain: [top - high, top], range: [-0.09 * b.top, b.top], visible: false };
      layout.annotations.push({ text: labels(c)[name], xref: "paper", yref: "paper", x: 0, y: top, xanchor: "left", yanchor: "bottom", showarrow: false, font: { color: GB.css(colour), size: 13 } });
      if (b.spike) layout.annotations.push({ text: GB.t("histograms.spike", { share: GB.percent(b.spike.share) }), x: b.spike.at, y: b.top, xref: `x${n}`, yref: `y${n}`, showarrow: false, yanchor: "top", xanchor: "left", xshift: 8, font: { color: GB.css("text") } });
      if (name === "x") layout.shapes.push(...meanLines(c, n));
    });
    return { traces, layout, height: 110 * kinds.length + 60 };
  }
  /* The eight values on the ruler, the picked one larger. */
  function ticks(c, name, n, top) {
    const values = c.values[name];
    return {
      type: "scatter", mode: "markers", x: values ?? [], y: (values ?? []).map(() => -0.045 * top), xaxis: `x${n}`, yaxis: `y${n}`, hoverinfo: "x",
      marker: { symbol: "diamond", size: (values ?? []).map((_, i) => (i === Pick.picked.value ? 13 : 7)), color: GB.css("text"), line: { color: GB.css("card"), width: 1 } },
    };
  }
  const meanLines = (c, n) => [0, -1, 1].map((k) => ({
    type: "line", xref: `x${n}`, yref: "paper", x0: c.mean + k * c.std, x1: c.mean + k * c.std, y0: 0, y1: 1,
    line: { color: GB.css(k ? "line" : "mean"), width: k ? 1 : 1.5, dash: "dot" },
  }));

  const show = () => {
    GB.plot("histograms", make);
    const c = Pick.channel();
    GB.numbers("histograms", GB.t("histograms.numbers", { mean: GB.num(c.mean, 4), std: GB.num(c.std, 4), gamma: GB.num(c.gamma ?? 1, 4), beta: GB.num(c.beta ?? 0, 4) }));
  };
  Pick.subscribe(show);
})();
