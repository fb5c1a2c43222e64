"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// marks that are black on white are light on a dark page
const dark = matchMedia("(prefers-color-scheme: dark)");
const themed = (figure) => dark.matches
  ? JSON.parse(JSON.stringify(figure).replaceAll('"black"', '"#e0e0e0"').replaceAll('"#444444"', '"#bbbbbb"')) : figure;
const plot = () => document.querySelectorAll(".figure").forEach((place) => {
  const figure = themed(data.figures[place.id]);
  Plotly.react(place, figure.data, { ...figure.layout, autosize: true, width: undefined }, { displaylogo: false, responsive: true });
});
plot();
dark.addEventListener("change", plot);

const body = document.getElementById("rows").tBodies[0];
const head = document.getElementById("rows").tHead.insertRow();
const known = (value) => value !== null && value !== undefined;
const shown = data.columns.filter(([key]) => data.rows.some((row) => known(row[key])));
let order = { key: "gap", up: false };
const counts = ["checkpoint", "seed", "detected", "not_repeated"];
const text = (row, key) => !known(row[key]) ? "" : typeof row[key] !== "number" ? row[key]
  : row[key].toFixed(counts.includes(key) ? 0 : 2);
const compare = (a, b) => {
  const [x, y] = [a[order.key], b[order.key]];
  if (!known(x) || !known(y)) return known(y) - known(x); // what is not known comes last, whichever way
  const by = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
  return order.up ? by : -by;
};
const fill = () => {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.rows.filter((row) => {
    const all = shown.map(([key]) => text(row, key)).join(" ").toLowerCase();
    return words.every((word) => all.includes(word));
  }).sort(compare);
  body.replaceChildren(...rows.map((row) => {
    const tr = document.createElement("tr");
    tr.append(...shown.map(([key]) => Object.assign(document.createElement("td"), {
      textContent: text(row, key), className: typeof row[key] === "number" ? "number" : "",
    })));
    return tr;
  }));
  document.getElementById("count").textContent = `${rows.length} of ${data.rows.length} rows`;
  [...head.cells].forEach((th, i) => {
    th.setAttribute("aria-sort", shown[i][0] !== order.key ? "none" : order.up ? "ascending" : "descending");
  });
};
shown.forEach(([key, name, meaning]) => {
  const th = document.createElement("th");
  const button = Object.assign(document.createElement("button"), { textContent: name });
  Object.assign(th, { title: meaning });
  th.dataset.key = key;
  button.addEventListener("click", () => {
    order = { key, up: order.key === key ? !order.up : true };
    fill();
  });
  th.append(button);
  head.append(th);
});
document.getElementById("search").addEventListener("input", fill);
fill();
