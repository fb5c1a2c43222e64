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

const table = document.getElementById("tokens");
if (table) {
  const body = table.tBodies[0];
  const head = table.tHead.insertRow();
  const shown = data.columns.filter(([key]) => data.rows.some((row) => row[key] !== null && row[key] !== undefined));
  let order = { key: "indicator", up: true };
  let chosen = null;

  const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "\\n").replace(/\t/g, "\\t");
  const cell = (row, key) => {
    const td = document.createElement("td");
    const value = row[key];
    if (value === null || value === undefined) return td;
    if (typeof value === "number") {
      td.className = "number";
      td.textContent = Number.isInteger(value) ? String(value)
        : Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(3);
    } else if (typeof value === "boolean") td.textContent = value ? "yes" : "";
    else td.textContent = key === "text" ? visible(value) : value;
    if (key === "text") td.classList.add("token-text");
    return td;
  };
  const compare = (a, b) => {
    const [x, y] = [a[order.key], b[order.key]];
    const none = (v) => v === null || v === undefined;
    if (none(x) || none(y)) return none(x) - none(y); // what is not known comes last, whichever way
    const by = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (order.up ? by : -by) || a.id - b.id;
  };
  const fill = () => {
    const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = data.rows.filter((row) => {
      const all = [row.id, row.text, row.kind, row.verdict, row.cause, row.detected ? "detected" : ""];
      return words.every((word) => all.join(" ").toLowerCase().includes(word));
    }).sort(compare);
    body.replaceChildren(...rows.map((row) => {
      const tr = document.createElement("tr");
      tr.dataset.id = row.id;
      tr.tabIndex = 0;
      tr.classList.toggle("chosen", row.id === chosen);
      tr.append(...shown.map(([key]) => cell(row, key)));
      return tr;
    }));
    document.getElementById("count").textContent = `${rows.length} of ${data.rows.length} tokens`;
    [...head.cells].forEach((th, i) => {
      th.setAttribute("aria-sort", shown[i][0] !== order.key ? "none" : order.up ? "ascending" : "descending");
    });
  };
  shown.forEach(([key, name, meaning]) => {
    const th = document.createElement("th");
    const button = document.createElement("button");
    button.textContent = name;
    th.title = meaning;
    th.dataset.key = key;
    button.addEventListener("click", () => {
      order = { key, up: order.key === key ? !order.up : true };
      fill();
    });
    th.append(button);
    head.append(th);
  });

  const element = (kind, text, className) =>
    Object.assign(document.createElement(kind), { textContent: text, className: className || "" });
  const look = (id) => {
    const row = data.rows.find((r) => r.id === id);
    if (!row) return;
    chosen = id;
    const panel = document.getElementById("token");
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
  body.addEventListener("click", choose);
  body.addEventListener("keydown", choose);
  document.getElementById("search").addEventListener("input", fill);
  fill();
}
