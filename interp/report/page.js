"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const config = { displaylogo: false, responsive: true };

// marks that are black on white are light on a dark page
const dark = matchMedia("(prefers-color-scheme: dark)");
const themed = (figure) => dark.matches
  ? JSON.parse(JSON.stringify(figure).replaceAll('"black"', '"#e0e0e0"').replaceAll('"#444444"', '"#bbbbbb"')) : figure;

// figures are drawn when they come near, so that the page opens at once
const plot = (place) => {
  const figure = themed(data.figures[place.id]);
  Plotly.react(place, figure.data, { ...figure.layout, autosize: true, width: undefined }, config);
};
const draw = (place) => {
  if (!data.figures[place.id] || place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  plot(place);
};
dark.addEventListener("change", () => document.querySelectorAll(".figure[data-drawn]").forEach(plot));
const near = new IntersectionObserver(
  (seen) => seen.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)),
  { rootMargin: "600px" },
);
document.querySelectorAll(".figure").forEach((place) => near.observe(place));
addEventListener("beforeprint", () => document.querySelectorAll(".figure").forEach(draw));

const table = document.getElementById(data.what);
if (table) {
  const panel = document.getElementById("token"); // of the chosen row, on a page that has one
  const body = table.tBodies[0];
  const head = table.tHead.insertRow();
  const known = (value) => value !== null && value !== undefined;
  const shown = data.columns.filter(({ key }) => data.rows.some((row) => known(row[key])));
  let order = data.order;
  let chosen = null;

  const element = (kind, text, className) =>
    Object.assign(document.createElement(kind), { textContent: text, className: className || "" });
  const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "\\n").replace(/\t/g, "\\t");
  const number = (value, digits) => known(digits) ? value.toFixed(digits)
    : Number.isInteger(value) ? String(value)
    : Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(3);
  const words = (value, digits) => typeof value === "number" ? number(value, digits)
    : typeof value === "boolean" ? (value ? "yes" : "") : known(value) ? value : "";
  const cell = (row, { key, digits }) => key === "text" ? element("td", visible(row.text), "token-text")
    : element("td", words(row[key], digits), typeof row[key] === "number" ? "number" : "");
  const sought = (row) => shown.filter(({ searched }) => searched)
    .map(({ key, heading, digits }) => row[key] === true ? heading : words(row[key], digits))
    .join(" ").toLowerCase();
  const compare = (a, b) => {
    const [x, y] = [a[order.key], b[order.key]];
    if (!known(x) || !known(y)) return known(y) - known(x); // what is not known comes last, whichever way
    const numeric = order.key !== "text"; // models of several sizes are sorted by these, tokens letter by letter
    const by = typeof x === "string" ? x.localeCompare(y, undefined, { numeric }) : x - y;
    return (order.up ? by : -by) || a.id - b.id;
  };
  const fill = () => {
    const asked = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = data.rows.filter((row) => {
      const all = sought(row);
      return asked.every((word) => all.includes(word));
    }).sort(compare);
    body.replaceChildren(...rows.map((row) => {
      const tr = document.createElement("tr");
      tr.append(...shown.map((column) => cell(row, column)));
      if (panel) {
        tr.dataset.id = row.id;
        tr.tabIndex = 0;
        tr.classList.toggle("chosen", row.id === chosen);
      }
      return tr;
    }));
    document.getElementById("count").textContent = `${rows.length} of ${data.rows.length} ${data.what}`;
    [...head.cells].forEach((th, i) => {
      th.setAttribute("aria-sort", shown[i].key !== order.key ? "none" : order.up ? "ascending" : "descending");
    });
  };
  shown.forEach(({ key, heading, meaning }) => {
    const th = Object.assign(document.createElement("th"), { title: meaning });
    const button = element("button", heading);
    th.dataset.key = key;
    button.addEventListener("click", () => {
      order = { key, up: order.key === key ? !order.up : true };
      fill();
    });
    th.append(button);
    head.append(th);
  });
  document.getElementById("search").addEventListener("input", fill);

  const look = (id) => {
    const row = data.rows.find((r) => r.id === id);
    if (!row) return;
    chosen = id;
    const beside = element("div", "", "beside");
    panel.replaceChildren(element("h3", `${visible(row.text)}  (token ${id})`), beside);
    for (const [side, list] of Object.entries(row.near)) {
      const box = element("div", "");
      box.append(element("h4", `nearest by ${side} rows (cosine)`));
      const lines = element("table", "");
      for (const [token, text, cosine] of list) {
        const tr = lines.insertRow();
        tr.append(
          element("td", visible(text), "token-text"),
          element("td", String(token), "number"),
          element("td", cosine.toFixed(3), "number"),
        );
        tr.addEventListener("click", () => look(token));
      }
      box.append(lines);
      beside.append(box);
    }
    const small = (title, trace, axis) => {
      const place = element("div", "", "small");
      beside.append(place);
      const template = Object.values(data.figures)[0]?.layout.template;
      const margin = { l: 55, r: 10, t: 40, b: 45 };
      const layout = { template, height: 260, margin, title: { text: title, font: { size: 13 } }, ...axis };
      Plotly.newPlot(place, [trace], layout, { ...config, displayModeBar: false });
    };
    small("log-prob in copy after copy", { x: row.curve.map((_, i) => i + 1), y: row.curve, mode: "lines+markers" },
      { xaxis: { title: "copy", dtick: 1 }, yaxis: { title: "nats" } });
    if (row.shares) {
      const bars = { x: Object.keys(row.shares), y: Object.values(row.shares), type: "bar" };
      const axes = { yaxis: { title: "nats" }, xaxis: { automargin: true } };
      small("what it lacks of ordinary tokens, by cause", bars, axes);
    }
    [...body.rows].forEach((tr) => tr.classList.toggle("chosen", tr.dataset.id === String(id)));
  };
  const choose = (event) => {
    const tr = event.target.closest("tr");
    if (tr && (event.type === "click" || event.key === "Enter")) look(Number(tr.dataset.id));
  };
  if (panel) {
    body.addEventListener("click", choose);
    body.addEventListener("keydown", choose);
  }
  fill();
}
