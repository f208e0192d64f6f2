/* The Jacobian of a small batch as a picture equation: identity − mean − variance = result, the
   common factor γ/σ taken out. Blue is positive, orange negative, all on one scale. */
"use strict";
const Jacobian = (() => {
  const { css, t, num } = GB;

  function panels(parts, scale, total, still) {
    const part = (rows) => rows.map((row) => row.map((v) => (still ? 0 : -v)));
    const over = (rows) => rows.map((row) => row.map((v) => (scale ? v / scale : v)));
    return [
      { z: parts.identity, text: t("jacobian.identity") },
      { z: part(parts.mean), text: t("jacobian.mean") },
      { z: part(parts.variance), text: t("jacobian.variance") },
      { z: scale ? over(total) : total, text: t("jacobian.total") },
    ];
  }

  /* total: the matrix to show as the result; by default the one computed here. still: the statistics are
     constants, so that nothing is subtracted. */
  function show(id, x, gamma, eps, total, still = false) {
    const j = BatchNorm.jacobian(x, gamma, eps);
    const scale = still ? total[0][0] || 1 : j.scale;
    GB.plot(id, () => {
      const low = GB.byId(id).clientWidth < 620;
      const colours = [[0, css("c2")], [0.5, css("sunk")], [1, css("c1")]];
      const layout = { margin: { l: 4, r: 4, t: 26, b: 4 }, annotations: [] };
      const traces = panels(j, scale, total ?? j.total, still).map((panel, i) => {
        const n = i ? i + 1 : "";
        const [column, row] = low ? [i % 2, i >> 1] : [i, 0];
        const across = low ? 2 : 4;
        const gap = 0.03, wide = (1 - gap * (across - 1)) / across;
        const left = column * (wide + gap), right = left + wide;
        const top = low ? 1 - row * 0.54 : 1, bottom = low ? top - 0.44 : 0;
        layout[`xaxis${n}`] = { domain: [left, right], anchor: `y${n}`, visible: false, constrain: "domain" };
        layout[`yaxis${n}`] = { domain: [bottom, top], anchor: `x${n}`, visible: false, autorange: "reversed", scaleanchor: `x${n}`, constrain: "domain" };
        layout.annotations.push({ text: panel.text, xref: "paper", yref: "paper", x: (left + right) / 2, y: top, xanchor: "center", yanchor: "bottom", showarrow: false, font: { color: css("text"), size: 13 } });
        return { type: "heatmap", z: panel.z, xaxis: `x${n}`, yaxis: `y${n}`, zmin: -1, zmax: 1, colorscale: colours, showscale: false, xgap: 1, ygap: 1, hovertemplate: "%{z:.4f}<extra></extra>" };
      });
      return { traces, layout, height: low ? 430 : Math.max(150, Math.min(290, GB.byId(id).clientWidth / 4)) + 20 };
    });
    return j;
  }
  return { show };
})();
