/* The formula with the picked channel's numbers in it, its steps for one value, and the table of
   eight values whose columns light up together. Every number carries its full value in data-value. */
"use strict";
const Formula = (() => {
  const ROWS = ["x", "centred", "xhat", "y", "residual", "z"];
  const COLOURS = { x: "x", centred: "mean", xhat: "norm", y: "out", residual: "c1", z: "act" };

  /* MathML as text; every argument is our own or a formatted number. */
  const mi = (name, colour) => `<mi${colour ? ` style="color:var(--${colour})"` : ""}>${name}</mi>`;
  const mn = (value, digits, colour, key) =>
    `<mn${colour ? ` style="color:var(--${colour})"` : ""}${key ? ` data-key="${key}" data-value="${value}"` : ""}>${GB.num(value, digits)}</mn>`;
  const mo = (sign) => `<mo>${sign}</mo>`;
  const row = (...parts) => `<mrow>${parts.join("")}</mrow>`;
  const frac = (top, bottom) => `<mfrac>${top}${bottom}</mfrac>`;
  const root = (inside) => `<msqrt>${inside}</msqrt>`;
  const signed = (value, text) => (value < 0 ? row(mo("("), text, mo(")")) : text);
  const xhat = (colour = "norm") => `<mover accent="true">${mi("x", colour)}<mo style="color:var(--${colour})">^</mo></mover>`;
  const mean = () => row(mi("E", "mean"), `<mo style="color:var(--mean)">[</mo>`, mi("x", "mean"), `<mo style="color:var(--mean)">]</mo>`);
  const variance = () => row(mi("Var", "variance"), `<mo style="color:var(--variance)">[</mo>`, mi("x", "variance"), `<mo style="color:var(--variance)">]</mo>`);
  const math = (inside, block = false) => `<math lang="en" displaystyle="true" display="${block ? "block" : "inline"}">${inside}</math>`;

  /* Significant digits to show: no more than the check says agree, and fewer on a phone. */
  const digitsOf = (channel) => Math.max(3, Math.min(GB.narrow() ? 5 : 6, Math.floor(channel.check?.digits ?? 5)));

  /* y = γ·(x − E[x]) / √(Var[x] + ε) + β, above the same with numbers. */
  function whole(c, x, y, digits) {
    const line = (left, sign, right) => `<mtr><mtd style="text-align:right">${left}</mtd><mtd>${sign}</mtd><mtd style="text-align:left">${right}</mtd></mtr>`;
    const symbols = row(mi("γ", "c1"), mo("·"), frac(row(mi("x", "x"), mo("−"), mean()), root(row(variance(), mo("+"), mi("ε")))), mo("+"), mi("β", "c1"));
    const filled = row(
      mn(c.gamma ?? 1, digits, "c1", "gamma"), mo("·"),
      frac(row(mn(x, digits, "x", "x"), mo("−"), signed(c.mean, mn(c.mean, digits, "mean", "mean"))),
        root(row(mn(c.var, digits, "variance", "var"), mo("+"), mn(c.eps, 2, null, "eps")))),
      mo("+"), signed(c.beta ?? 0, mn(c.beta ?? 0, digits, "c1", "beta")));
    return math(`<mtable displaystyle="true">${line(mi("y", "out"), mo("="), symbols)}${line("", mo("="), filled)}${line("", mo("="), mn(y, digits, "out", "y"))}</mtable>`, true);
  }

  function steps(c, v, at, digits, activation) {
    const items = [
      ["centre", "mean", math(row(mi("x", "x"), mo("−"), mean(), mo("="), mn(v.centred[at], digits, "mean", "centred")))],
      ["normalise", "norm", math(row(xhat(), mo("="), frac(mn(v.centred[at], digits, "mean"), mn(c.std, digits, "variance", "std")), mo("="), mn(v.xhat[at], digits, "norm", "xhat")))],
      ["scale", "out", math(row(mn(c.gamma ?? 1, digits, "c1"), mo("·"), signed(v.xhat[at], mn(v.xhat[at], digits, "norm")), mo("+"), signed(c.beta ?? 0, mn(c.beta ?? 0, digits, "c1")), mo("="), mn(v.y[at], digits, "out")))],
    ];
    if (v.z && activation) items.push(["activate", "act", math(row(`<mtext>${activation}</mtext>`, mo("("), mn(v.y[at], digits, "out"), ...(v.residual ? [mo("+"), signed(v.residual[at], mn(v.residual[at], digits, "c1"))] : []), mo(")"), mo("="), mn(v.z[at], digits, "act", "z")))]);
    return items;
  }

  function showFormula() {
    const c = Pick.channel();
    const at = Pick.picked.value;
    const digits = digitsOf(c);
    GB.byId("big-formula").innerHTML = whole(c, c.values.x[at], c.values.y[at], digits);
    const list = GB.byId("steps");
    list.replaceChildren(...steps(c, c.values, at, digits, Pick.layer().activation).map(([key, colour, formula]) => {
      const item = GB.html("li", { style: `--k:var(--${colour})` }, GB.html("span", { class: "step-name" }, GB.t(`steps.${key}`)));
      item.insertAdjacentHTML("beforeend", `<span class="scroll step-math">${formula}</span>`);
      return item;
    }));
    list.querySelectorAll(".scroll").forEach((box) => { if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; });
    const agrees = c.check && c.check.max_error !== null;
    GB.byId("check").textContent = agrees ? GB.t("formula.check", { error: GB.num(c.check.max_error, 2), digits: c.check.digits }) : "";
    const layer = Pick.layer();
    GB.byId("pick-facts").textContent = GB.t("formula.facts", {
      shape: (layer.input_shape || []).join(" × "), count: c.count.toLocaleString("en"), channels: layer.channels.length,
      all: layer.num_features,
    }) + (c.statistics === "running" ? ` ${GB.t("formula.running")}` : "");
  }

  /* The table: a header of buttons, one row a step. Columns light up on hover, focus and pick. */
  function showTable() {
    const c = Pick.channel();
    const digits = Math.min(5, digitsOf(c));
    const count = c.values.x.length;
    const heads = Array.from({ length: count }, (_, i) =>
      GB.html("th", { scope: "col", "data-col": i }, GB.html("button", {
        type: "button", "aria-pressed": String(i === Pick.picked.value), "data-col": i,
        onclick: () => { Pick.set({ value: i }); document.querySelector(`#values button[data-col="${i}"]`).focus(); },
      }, place(c.values.where[i]))));
    const rows = ROWS.filter((name) => c.values[name]).map((name) =>
      GB.html("tr", {}, GB.html("th", { scope: "row", style: `color:var(--${COLOURS[name]})` }, rowName(name)),
        ...c.values[name].map((value, i) => GB.html("td", { "data-col": i, "data-value": value, "data-row": name }, GB.num(value, digits)))));
    const table = GB.byId("values");
    table.replaceChildren(
      GB.html("thead", {}, GB.html("tr", {}, GB.html("th", { scope: "col" }, GB.t("formula.place")), ...heads)),
      GB.html("tbody", {}, ...rows));
    light(Pick.picked.value);
  }
  const place = (where) => (where.length > 1 ? `${where[0]}: ${where.slice(1).join(",")}` : String(where[0]));
  const rowName = (name) => ({ x: "x", centred: "x − E[x]", xhat: "x̂", y: "y", residual: GB.t("formula.residual"), z: Pick.layer().activation ?? "z" })[name];

  function light(column) {
    document.querySelectorAll("#values [data-col]").forEach((cell) => cell.classList.toggle("lit", Number(cell.dataset.col) === column));
  }
  function follow(event) {
    const cell = event.target.closest("[data-col]");
    light(cell ? Number(cell.dataset.col) : Pick.picked.value);
  }

  if (Pick.any) {
    const table = GB.byId("values");
    table.addEventListener("pointerover", follow);
    table.addEventListener("pointerleave", () => light(Pick.picked.value));
    table.addEventListener("focusin", follow);
    table.addEventListener("click", (event) => {
      const cell = event.target.closest("td[data-col]");
      if (cell) Pick.set({ value: Number(cell.dataset.col) });
    });
    Pick.subscribe(() => { showFormula(); showTable(); });
  }
  return { mi, mn, mo, row, frac, root, xhat, mean, variance, math, signed, whole };
})();
