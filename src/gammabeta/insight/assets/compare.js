/* The figures of the compare page, each from GB.data as the command's JSON has it. */
"use strict";
(() => {
  const { data, css, t, num, percent, plot, numbers, byId, narrow } = GB;
  const names = data.settings.variants;
  const label = (name) => t(`variant.${name}`);
  const colour = (name) => css(`c${[1, 2, 3, 4, 6][names.indexOf(name) % 5]}`); // 5 is close to 2
  const clear = (hex) => `${hex}26`;
  const marks = ["circle", "square", "diamond", "triangle-up", "cross"];
  const mark = (name) => marks[names.indexOf(name) % marks.length];
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const known = (values) => values.filter((v) => v !== null && v !== undefined);
  const own = (name) => data.trainings.filter((r) => r.stage === "full" && r.variant === name && r.lr === data.variants[name].lr);
  const gap = () => (narrow() ? { l: 4, r: 4, t: 8, b: 8 } : { l: 8, r: 8, t: 8, b: 8 });

  /* A line of means with a band from the least to the greatest; columns[i] are the seeds' values at xs[i]. */
  function band(name, xs, columns) {
    const rows = xs.map((x, i) => [x, known(columns[i])]).filter(([, values]) => values.length);
    const x = rows.map(([at]) => at);
    const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", type: "scatter", showlegend: false };
    return [
      { ...edge, y: rows.map(([, v]) => Math.min(...v)) },
      { ...edge, y: rows.map(([, v]) => Math.max(...v)), fill: "tonexty", fillcolor: clear(colour(name)) },
      { x, y: rows.map(([, v]) => mean(v)), name: label(name), type: "scatter", mode: "lines+markers",
        line: { color: colour(name), width: 2 }, marker: { color: colour(name), symbol: mark(name), size: 7 },
        hovertemplate: `${label(name)}: %{y:.4g}<extra></extra>` },
    ];
  }

  /* One band a variant over its full trainings' points. */
  function curves(id, x, y, axis, title, unit, extra = {}) {
    if (!byId(id)) return;
    plot(id, () => ({
      traces: names.flatMap((name) => {
        const trainings = own(name).filter((r) => r.points.length);
        if (!trainings.length) return [];
        const longest = Math.max(...trainings.map((r) => r.points.length));
        const at = [...Array(longest).keys()];
        const points = at.map((i) => trainings.map((r) => r.points[i]).filter(Boolean));
        return band(name, points.map((p) => mean(p.map((one) => x(one, name)))), points.map((p) => p.map(y)));
      }),
      layout: { margin: gap(), xaxis: { title: { text: axis }, rangemode: "tozero" }, yaxis: { title: { text: title }, ...unit }, ...extra },
    }));
  }
  const shares = { tickformat: ".0%" };
  const stepSeconds = (name) => data.plan.step_seconds[name];
  curves("curves-epochs", (p) => p.epoch, (p) => p.accuracy, t("axis.epochs"), t("axis.validation"), shares);
  curves("curves-seconds", (p, name) => p.step * stepSeconds(name), (p) => p.accuracy, t("axis.seconds"), t("axis.validation"), shares);
  curves("curves-loss", (p) => p.epoch, (p) => p.train_loss, t("axis.epochs"), t("axis.loss"), {});
  const finals = !byId("curves-epochs") ? [] : names.map((name) => {
    const last = known(own(name).map((r) => (r.points.length ? r.points[r.points.length - 1].accuracy : null)));
    return last.length ? `${label(name)} ${percent(mean(last), 1)}` : null;
  });
  numbers("curves-epochs", known(finals).join(" · "));
  if (byId("curves-seconds")) numbers("curves-seconds", names.map((name) => `${label(name)} ${num(1000 * stepSeconds(name), 3)} ms`).join(" · "));

  if (byId("sweep")) {
    plot("sweep", () => ({
      traces: names.flatMap((name) => {
        const rows = data.variants[name].sweep.filter((row) => row.seeds.length);
        return band(name, rows.map((row) => row.lr), rows.map((row) => row.accuracy));
      }),
      layout: { margin: gap(), xaxis: { type: "log", title: { text: t("axis.lr") }, tickvals: data.plan.rates }, yaxis: { title: { text: t("axis.validation") }, ...shares } },
    }));
    numbers("sweep", names.filter((name) => data.variants[name].lr).map((name) => `${label(name)} ${num(data.variants[name].lr, 1)}`).join(" · "));
    const kinds = ["trained", "chance", "nonfinite"];
    const share = (row, kind) => (row.seeds.length ? row.outcomes.filter((o) => o === kind).length : null);
    plot("outcomes", () => ({
      traces: [{
        type: "heatmap", x: data.plan.rates.map((lr) => num(lr, 1)), y: [...names].reverse().map(label), xgap: 3, ygap: 3,
        z: [...names].reverse().map((name) => data.variants[name].sweep.map((row) => (row.seeds.length ? share(row, "trained") / row.seeds.length : null))),
        text: [...names].reverse().map((name) => data.variants[name].sweep.map((row) => (row.seeds.length ? `${share(row, "trained")}/${row.seeds.length}` : ""))),
        texttemplate: "%{text}", textfont: { color: css("text") }, colorscale: [[0, css("sunk")], [1, css("glow")]], zmin: 0, zmax: 1, showscale: false,
        hovertemplate: "%{y}, %{x}: %{text}<extra></extra>",
      }],
      layout: { margin: gap(), xaxis: { type: "category", title: { text: t("axis.lr") }, showgrid: false }, yaxis: { showgrid: false } },
      height: 60 + 44 * names.length,
    }));
    const count = (name) => kinds.map((kind) => data.variants[name].outcomes[kind]);
    numbers("outcomes", names.map((name) => { const [a, b, c] = count(name); return `${label(name)} ${a}/${a + b + c}`; }).join(" · "));
  }

  if (byId("accuracy")) {
    plot("accuracy", () => ({
      traces: names.map((name) => {
        const values = data.variants[name].best.values;
        return { type: "scatter", mode: "markers", x: values, y: values.map(() => label(name)), name: label(name),
          marker: { color: colour(name), symbol: mark(name), size: 12, opacity: 0.75, line: { width: 1, color: css("card") } },
          hovertemplate: "%{x:.2%}<extra></extra>" };
      }).concat(names.map((name) => {
        const { mean: middle } = data.variants[name].best;
        return { type: "scatter", mode: "markers", x: [middle], y: [label(name)], marker: { color: css("text"), symbol: "line-ns-open", size: 26, line: { width: 2, color: css("text") } }, hovertemplate: "%{x:.2%}<extra></extra>" };
      })),
      layout: { margin: gap(), xaxis: { title: { text: t("axis.test") }, tickformat: ".1%" }, yaxis: { type: "category", autorange: "reversed" } },
      height: 70 + 46 * names.length,
    }));
    numbers("accuracy", names.map((name) => `${label(name)} ${percent(data.variants[name].best.mean, 2)}`).join(" · "));
  }

  /* The landscape: at each walk the losses (or effective β) met, over all seeds, least to greatest. */
  const walked = names.filter((name) => ["bn", "none"].includes(name));
  function walks(id, values, title) {
    if (!byId(id)) return;
    plot(id, () => {
      const traces = walked.flatMap((name) => {
        const trainings = own(name);
        const most = Math.max(0, ...trainings.map((r) => r.landscape.length));
        const at = [...Array(most).keys()];
        const looks = at.map((i) => trainings.map((r) => r.landscape[i]).filter(Boolean));
        return band(name, looks.map((some) => mean(some.map((w) => w.epoch))), looks.map((some) => some.flatMap(values)));
      });
      const all = traces.flatMap((trace) => trace.y).filter((v) => v > 0);
      return { traces, layout: { margin: gap(), showlegend: true, xaxis: { title: { text: t("axis.epochs") }, rangemode: "tozero" }, yaxis: all.length ? GB.logAxis(title, all) : { title: { text: title } } } };
    });
  }
  walks("landscape-loss", (w) => [w.loss, ...w.losses], t("axis.loss_walk"));
  walks("landscape-beta", (w) => w.smoothness, t("axis.beta"));
  const middle = (name, pick) => {
    const values = known(own(name).flatMap((r) => r.landscape.flatMap(pick))).sort((a, b) => a - b);
    return values.length ? `${label(name)} ${num(values[Math.floor(values.length / 2)], 3)}` : null;
  };
  if (byId("landscape-loss")) numbers("landscape-loss", known(walked.map((name) => middle(name, (w) => [w.loss, ...w.losses]))).join(" · "));
  if (byId("landscape-beta")) numbers("landscape-beta", known(walked.map((name) => middle(name, (w) => w.smoothness))).join(" · "));

  if (byId("gradients")) {
    plot("gradients", () => {
      const traces = names.flatMap((name) => {
        const first = own(name)[0];
        if (!first) return [];
        const epoch = (i) => ((i + 0.5) * first.gradient_norm_every * first.batch_size) / data.images.train;
        return [{ type: "scatter", mode: "lines", name: label(name), x: first.gradient_norm.map((_, i) => epoch(i)), y: first.gradient_norm,
          line: { color: colour(name), width: 1.5 }, hovertemplate: `${label(name)}: %{y:.3g}<extra></extra>` }];
      });
      const all = traces.flatMap((trace) => trace.y).filter((v) => v > 0);
      return { traces, layout: { margin: gap(), xaxis: { title: { text: t("axis.epochs") }, rangemode: "tozero" }, yaxis: all.length ? GB.logAxis(t("axis.gradient"), all) : {} } };
    });
    const stable = data.claims.find((claim) => claim.id === "stable").measures.find((m) => m.id === "gradient_norm");
    if (stable) numbers("gradients", Object.entries(stable.values).filter(([, v]) => known(v).length).map(([name, v]) => `${label(name)} ${percent(Math.exp(mean(known(v))) - 1, 1)}`).join(" · "));
  }

  if (byId("batch")) {
    const some = names.filter((name) => data.variants[name].batch_sizes.length);
    plot("batch", () => ({
      traces: some.map((name) => {
        const rows = data.variants[name].batch_sizes;
        return { type: "scatter", mode: "lines+markers", name: label(name), x: rows.map((r) => r.batch_size), y: rows.map((r) => r.accuracy),
          line: { color: colour(name), width: 2 }, marker: { color: colour(name), symbol: mark(name), size: 8 }, hovertemplate: "%{x}: %{y:.1%}<extra></extra>" };
      }),
      layout: { margin: gap(), showlegend: true, xaxis: { type: "log", title: { text: t("axis.batch") }, tickvals: [2, 4, 8, 16, 32, 64, 128] }, yaxis: { title: { text: t("axis.validation") }, ...shares } },
    }));
    numbers("batch", some.map((name) => `${label(name)} ${data.variants[name].batch_sizes.map((r) => `${r.batch_size}: ${percent(r.accuracy)}`).join(", ")}`).join(" · "));
  }
})();
