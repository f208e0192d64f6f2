/* Three rulers: each value as a dot on x, on x̂ and on y, joined by a line. The rulers stand still
   while the values move, so that one sees what the layer keeps and what it takes away. */
"use strict";
const Rulers = (() => {
  const { svg, num, t } = GB;
  const LINES = [58, 168, 278], HEIGHT = 318;

  const nice = (most) => [3, 6, 12, 30, 100, 1000].find((r) => most <= r) ?? most * 1.1;
  /* |x̂| never exceeds √(m − 1), so its ruler is fixed. */
  function reaches(state, result) {
    const finite = result.y.filter(Number.isFinite).map(Math.abs);
    return [state.reach, 3, nice(Math.max(3, ...finite))];
  }

  function ruler(at, name, reach, width, colour) {
    const y = LINES[at];
    const marks = [-1, -0.5, 0, 0.5, 1].map((k) => {
      const x = place(k * reach, reach, width);
      return svg("g", {}, svg("line", { x1: x, x2: x, y1: y - 4, y2: y + 4, stroke: "var(--soft)" }),
        svg("text", { x, y: y + 22, "text-anchor": "middle", "font-size": 12 }, String(k * reach).replace("-", "−")));
    });
    return svg("g", {}, svg("line", { x1: 20, x2: width - 20, y1: y, y2: y, stroke: "var(--soft)", "stroke-width": 1.5 }), ...marks,
      svg("text", { x: 4, y: y - 18, "font-size": 15, style: `fill:var(--${colour})` }, name));
  }
  const place = (value, reach, width) => width / 2 + (Math.max(-1.04, Math.min(1.04, value / reach)) * (width - 48)) / 2;

  /* Mean and one standard deviation about it. */
  function band(at, mean, std, reach, width) {
    const left = place(mean - std, reach, width), right = place(mean + std, reach, width);
    const middle = place(mean, reach, width);
    return svg("g", {}, svg("rect", { x: left, y: LINES[at] - 9, width: Math.max(0, right - left), height: 18, rx: 4, fill: "var(--glow)" }),
      svg("path", { d: `M${middle} ${LINES[at] - 10}l-5 -8h10z`, fill: "var(--mean)" }));
  }

  function draw(box, state, result, moved) {
    const width = Math.max(280, box.clientWidth);
    const reach = reaches(state, result);
    const rows = [state.x.slice(0, state.size), result.xhat, result.y];
    const usable = rows[1].every(Number.isFinite);
    const xs = rows.map((values, at) => values.map((v) => place(v, reach[at], width)));
    const lines = usable ? xs[0].map((x, i) => svg("path", { d: `M${x} ${LINES[0]}L${xs[1][i]} ${LINES[1]}L${xs[2][i]} ${LINES[2]}`, stroke: `var(--c${(i % 6) + 1})`, "stroke-width": 1.5, fill: "none", opacity: 0.75 })) : [];
    const dots = xs.flatMap((row, at) => (usable || at === 0 ? row.map((x, i) => svg("circle", { cx: x, cy: LINES[at], r: at ? 6 : 8, fill: `var(--c${(i % 6) + 1})`, stroke: "var(--card)", "stroke-width": 1.5, "data-index": i, class: at ? null : "handle" })) : []));
    const bands = usable ? [band(0, result.mean, Math.sqrt(result.var), reach[0], width), band(1, 0, 1, reach[1], width), band(2, state.beta, Math.abs(state.gamma), reach[2], width)] : [];
    const picture = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" },
      ...bands, ruler(0, "x", reach[0], width, "x"), ruler(1, "x̂", reach[1], width, "norm"), ruler(2, "y", reach[2], width, "out"), ...lines, ...dots);
    if (!usable) picture.append(svg("text", { x: width / 2, y: LINES[1] - 30, "text-anchor": "middle", "font-size": 14 }, t("rulers.undefined")));
    if (drag.index === null) listen(picture, box, state, width, moved);
    else { box.firstChild.replaceChildren(...picture.childNodes); return; } // keep the element that holds the pointer
    box.replaceChildren(picture);
  }

  const drag = { index: null };
  function listen(picture, box, state, width, moved) {
    picture.addEventListener("pointerdown", (event) => {
      const index = event.target.getAttribute("class") === "handle" ? Number(event.target.dataset.index) : null;
      if (index === null) return;
      drag.index = index;
      picture.setPointerCapture(event.pointerId);
    });
    picture.addEventListener("pointermove", (event) => {
      if (drag.index === null) return;
      const at = event.clientX - picture.getBoundingClientRect().left;
      moved(drag.index, Math.max(-1, Math.min(1, (2 * at - width) / (width - 48))) * state.reach);
    });
    for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => { drag.index = null; });
  }
  return { draw };
})();
