// Draws the figures of a notebook when they come near, in the colours of the page.
"use strict";
(() => {
  const config = { displaylogo: false, responsive: true };
  const dark = () => document.body.getAttribute("data-md-color-scheme") === "slate";
  // marks that are black on white are light on a dark page
  const themed = (text) => dark()
    ? text.replaceAll('"black"', '"#e0e0e0"').replaceAll('"#444444"', '"#bbbbbb"') : text;
  const draw = (place) => {
    const figure = JSON.parse(themed(place.figure));
    Plotly.react(place, figure.data, { ...figure.layout, autosize: true, width: undefined }, config);
    place.dataset.drawn = "yes";
  };
  const places = [...document.querySelectorAll(".plotly-figure")];
  for (const place of places) {
    const held = place.querySelector("script");
    place.figure = held.textContent;
    held.remove();
  }
  const near = new IntersectionObserver((seen) => {
    for (const entry of seen) if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
  }, { rootMargin: "600px" });
  places.forEach((place) => near.observe(place));
  addEventListener("beforeprint", () => places.filter((place) => !place.dataset.drawn).forEach(draw));
  new MutationObserver(() => places.filter((place) => place.dataset.drawn).forEach(draw))
    .observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
})();
