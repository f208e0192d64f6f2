/* Train against eval: where the layers part, and one image in different company. */
"use strict";
(() => {
  const modes = GB.data.modes;
  if (!modes) return;
  const { num, percent, t, css, html } = GB;

  function card(value, words) {
    return html("div", { class: "card stat" }, html("b", {}, value), html("span", {}, words));
  }
  const company = modes.company;
  GB.byId("mode-cards").append(...[
    modes.agreement != null ? card(percent(modes.agreement), t("modes.agreement", { n: GB.data.data.images })) : null,
    modes.accuracy_train != null ? card(`${percent(modes.accuracy_train, 1)} / ${percent(modes.accuracy_eval, 1)}`, t("modes.accuracy")) : null,
    modes.parts_at ? card(modes.parts_at, t("modes.parts")) : null,
    company ? card(`${company.flips} / ${company.draws}`, t("modes.flips", { size: company.size })) : null,
  ].filter(Boolean));

  const paths = modes.layers.map((l) => l.path);
  const distances = modes.layers.map((l) => l.distance);
  GB.plot("distance", () => {
    const at = paths.indexOf(modes.parts_at);
    return {
      traces: [{
        type: "bar", x: paths, y: distances, marker: { color: paths.map((_, i) => css(i === at ? "bad" : "c1")) }, hovertemplate: "%{x}<br>%{y:.4g}<extra></extra>",
      }],
      layout: {
        margin: { l: 8, r: 8, t: 30, b: 8 }, yaxis: { title: { text: t("distance.axis") }, range: [0, 1.2 * Math.max(...distances)], tickformat: Math.max(...distances) > 2 ? "" : ".0%" }, xaxis: GB.layerAxis(paths),
        annotations: at < 0 ? [] : [{ x: paths[at], y: distances[at], text: t("distance.mark"), showarrow: true, arrowhead: 0, ayref: "y", ay: 1.13 * Math.max(...distances), ax: 0, xanchor: at > paths.length * 0.7 ? "right" : at < paths.length * 0.3 ? "left" : "center", arrowcolor: css("bad"), font: { color: css("bad") } }],
      },
    };
  });
  const relative = (d) => (d > 2 ? `${num(d, 3)}×` : percent(d, 1));
  GB.numbers("distance", t("distance.numbers", { threshold: percent(modes.threshold), layer: modes.parts_at ?? "–", first: relative(distances[0]), last: relative(distances[distances.length - 1]) }));

  function softmax(logits) {
    const top = Math.max(...logits);
    const exps = logits.map((v) => Math.exp(v - top));
    const total = exps.reduce((a, b) => a + b, 0);
    return exps.map((v) => v / total);
  }
  const className = (i) => GB.data.data.classes?.[i] ?? String(i);

  /* Dots: this image's probability of a class among one set of neighbours; diamond: eval mode. */
  function strips() {
    const train = company.train.map(softmax);
    const still = softmax(company.eval[0]);
    const weight = (i) => still[i] + Math.max(...train.map((p) => p[i]));
    const classes = still.map((_, i) => i).sort((a, b) => weight(b) - weight(a)).slice(0, 8).reverse();
    const right = Math.max(...still, ...train.flat());
    const x = [], y = [];
    classes.forEach((i, at) => train.forEach((p, draw) => { x.push(p[i]); y.push(at + jitter(draw)); }));
    return {
      traces: [
        { type: "scatter", mode: "markers", name: t("company.train"), x, y, marker: { color: css("c2"), size: 7, opacity: 0.55 }, hovertemplate: "%{x:.3f}<extra></extra>" },
        { type: "scatter", mode: "markers", name: t("company.eval"), x: classes.map((i) => still[i]), y: classes.map((_, at) => at), marker: { symbol: "diamond", size: 14, color: css("c1"), line: { color: css("card"), width: 1.5 } }, hovertemplate: "%{x:.3f}<extra></extra>" },
      ],
      layout: {
        showlegend: true, xaxis: { range: [-0.03 * right, 1.04 * right], title: { text: t("company.axis") }, zeroline: false },
        yaxis: { tickvals: classes.map((_, at) => at), ticktext: classes.map((i) => className(company.classes[i])), range: [-0.6, classes.length - 0.4], zeroline: false, showgrid: false },
      },
      height: 44 * classes.length + 120,
    };
  }
  const jitter = (draw) => (((draw * 0.618034) % 1) - 0.5) * 0.5; // the golden ratio spreads evenly
  if (company && GB.byId("company")) {
    GB.plot("company", strips);
    const best = softmax(company.eval[0]);
    const top = best.indexOf(Math.max(...best));
    const range = company.train.map((l) => softmax(l)[top]);
    GB.numbers("company", t("company.numbers", { image: company.image, draws: company.train.length, name: className(company.classes[top]), eval: num(best[top], 3), low: num(Math.min(...range), 3), high: num(Math.max(...range), 3) }));
  }

  if (GB.byId("logits")) {
    const MOST = 3000;
    const pairs = modes.logits_eval.flatMap((row, i) => row.map((v, k) => [v, modes.logits_train[i][k]])).filter((p) => p.every((v) => v !== null));
    const step = Math.ceil(pairs.length / MOST);
    const shown = pairs.filter((_, i) => i % step === 0);
    const ends = [Math.min(...shown.flat()), Math.max(...shown.flat())];
    GB.plot("logits", () => ({
      traces: [
        { type: "scatter", mode: "lines", x: ends, y: ends, line: { color: css("soft"), dash: "dot", width: 1.5 }, hoverinfo: "skip" },
        { type: "scatter", mode: "markers", x: shown.map((p) => p[0]), y: shown.map((p) => p[1]), marker: { color: css("c1"), size: 7, opacity: 0.6 }, hovertemplate: "eval %{x:.3f}<br>train %{y:.3f}<extra></extra>" },
      ],
      layout: { xaxis: { title: { text: t("logits.eval") } }, yaxis: { title: { text: t("logits.train") } } },
      height: 380,
    }));
    const off = Math.sqrt(pairs.reduce((s, [a, b]) => s + (a - b) ** 2, 0) / pairs.length);
    GB.numbers("logits", t("logits.numbers", { images: modes.images, off: num(off, 3) }));
  }
})();
