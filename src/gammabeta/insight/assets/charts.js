/* What the pages' scripts share: the page's numbers and words, number formats, and figures drawn
   with the theme's colours, redrawn when theme or width change. No state beyond that. */
"use strict";
const GB = (() => {
  const { data, words, lang } = JSON.parse(document.getElementById("payload").textContent);
  const drawn = new Map(); // id -> function that draws it again

  const byId = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const narrow = () => window.innerWidth < 640;

  /* The words of a key, with {name} filled in. */
  function t(key, values = {}) {
    if (!(key in words)) throw new Error(`no words for ${key}`);
    return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  }

  /* A number to some significant digits, as a person writes it; null is a dash. */
  function num(value, digits = 4) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (value === 0) return "0";
    const size = Math.floor(Math.log10(Math.abs(value)));
    let text;
    if (size < -4 || size >= 7) {
      const [mantissa, power] = value.toExponential(digits - 1).split("e");
      text = `${mantissa}·10${superscript(Number(power))}`;
    } else {
      text = value.toFixed(Math.max(0, digits - 1 - size));
    }
    return text.replace("-", "−");
  }
  const superscript = (n) => String(n).replace(/[-\d]/g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
  const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)}\u00a0%`.replace("-", "−"));

  /* Layout that all figures share; what a figure says itself wins. */
  function themed(layout) {
    const axis = { gridcolor: css("grid"), zerolinecolor: css("soft"), linecolor: css("line"), automargin: true, fixedrange: true };
    const merged = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("soft") },
      margin: { l: 8, r: 8, t: 8, b: 8 }, showlegend: false, hovermode: "closest",
      hoverlabel: { bgcolor: css("card"), bordercolor: css("line"), font: { color: css("text") } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: css("text") } },
      ...layout,
    };
    for (const key of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((k) => /^[xy]axis/.test(k))])) {
      merged[key] = { ...axis, ...(layout[key] || {}) };
    }
    return merged;
  }

  /* An axis of layers in network order; long paths keep their end. */
  function layerAxis(paths) {
    const most = narrow() ? 12 : 22;
    const every = Math.ceil(paths.length / (narrow() ? 10 : 26));
    const shown = paths.filter((_, i) => i % every === 0);
    const short = (path) => (path.length > most ? `…${path.slice(-most)}` : path);
    return { type: "category", tickvals: shown, ticktext: shown.map(short), tickangle: paths.length > 6 ? -45 : 0, showgrid: false };
  }

  /* A logarithmic axis with a label a decade, or more of them where it spans less than two. */
  function logAxis(title, values) {
    const known = values.filter((v) => v > 0);
    const decades = Math.log10(Math.max(...known) / Math.min(...known));
    return { type: "log", title: { text: title }, exponentformat: "power", dtick: decades < 1.7 ? "D2" : Math.ceil(decades / 8) };
  }

  /* Draw a plotly figure; make() returns {traces, layout, height?} and may call css(). */
  function plot(id, make) {
    draw(id, () => {
      const box = byId(id);
      const { traces, layout = {}, height } = make();
      if (height) box.style.height = `${height}px`;
      return Plotly.react(box, traces, themed(layout), { displayModeBar: false, responsive: true, scrollZoom: false });
    });
  }

  /* Draw anything, now and whenever the theme or the width class changes. */
  function draw(id, make) {
    drawn.set(id, make);
    make();
  }

  /* Fill the line of numbers under a figure. */
  function numbers(id, text) {
    const line = byId(`${id}-numbers`);
    if (line) line.textContent = text;
  }

  const SVG = "http://www.w3.org/2000/svg";
  function svg(name, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, name), attributes, children);
  }
  function html(name, attributes = {}, ...children) {
    return fill(document.createElement(name), attributes, children);
  }
  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((c) => c !== null && c !== undefined));
    return node;
  }

  const redraw = () => drawn.forEach((make) => make());
  function isDark() {
    const set = document.documentElement.dataset.theme;
    return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let wasNarrow = narrow();
  window.addEventListener("resize", () => {
    if (narrow() !== wasNarrow) { wasNarrow = narrow(); redraw(); }
  });

  return { data, lang, byId, css, narrow, t, num, percent, layerAxis, logAxis, plot, draw, numbers, svg, html, redraw };
})();
