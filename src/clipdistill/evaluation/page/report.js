"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

// Classes at either end of the list while it is not shown whole.
const END = 8;

/** An element with attributes and children; text becomes a text node, never markup. */
function make(name, attributes, ...children) {
  const drawn = ["svg", "line", "circle", "rect"].includes(name);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A line from one average precision to the other, with a dot at each. */
function dumbbell(first, second, keys) {
  const change = first >= second ? "gained" : "lost";
  return make("svg", { class: "dumbbell", "aria-hidden": "true" },
    make("line", { class: "track", x1: "0%", x2: "100%", y1: "50%", y2: "50%" }),
    make("line", { class: change, x1: `${second}%`, x2: `${first}%`, y1: "50%", y2: "50%" }),
    make("circle", { class: `dot hollow of-${keys[1]}`, cx: `${second}%`, cy: "50%", r: 4 }),
    make("circle", { class: `dot of-${keys[0]}`, cx: `${first}%`, cy: "50%", r: 5 }));
}

function classRow([name, first, second], keys) {
  const difference = first - second;
  const sign = difference < 0 ? "−" : "+";
  return make("div", { class: "row" },
    make("span", { class: "name" }, name),
    dumbbell(first, second, keys),
    make("span", { class: "value" }, first.toFixed(1)),
    make("span", { class: "value" }, second.toFixed(1)),
    make("span", { class: `change ${difference < 0 ? "lost" : "gained"}` }, sign + Math.abs(difference).toFixed(1)));
}

function compareClasses() {
  const form = document.getElementById("compare");
  const list = document.getElementById("class-list");
  const button = document.getElementById("show-all");
  let whole = false;

  function draw() {
    const keys = [form.elements.first.value, form.elements.second.value];
    const wanted = form.elements.wanted.value.trim().toLowerCase();
    const rows = data.classes
      .filter(([name, row]) => keys.every((key) => key in row) && name.toLowerCase().includes(wanted))
      .map(([name, row]) => [name, row[keys[0]], row[keys[1]]])
      .sort((a, b) => (b[1] - b[2]) - (a[1] - a[2]) || (a[0] < b[0] ? -1 : 1));
    const hidden = whole ? 0 : Math.max(0, rows.length - 2 * END);
    const shown = rows.map((row) => classRow(row, keys));
    if (hidden) shown.splice(END, hidden, make("p", { class: "gap" }, `${hidden} classes between`));
    list.replaceChildren(...shown);
    button.hidden = !hidden;
    button.textContent = `Show all ${rows.length} classes`;
    const gained = rows.filter((row) => row[1] > row[2]).length;
    const lost = rows.filter((row) => row[1] < row[2]).length;
    document.getElementById("class-heads").hidden = !rows.length;
    document.getElementById("counts").textContent = !rows.length ? "No class matches." :
      `${gained} gained, ${lost} lost, ${rows.length - gained - lost} as before. ` +
      "The full dot is the method's, the hollow one that of the other.";
  }

  function start() { whole = false; draw(); }

  form.elements.first.addEventListener("change", start);
  form.elements.second.addEventListener("change", start);
  form.elements.wanted.addEventListener("input", start);
  form.addEventListener("submit", (event) => event.preventDefault());
  button.addEventListener("click", () => { whole = true; draw(); });
  draw();
}

/** Take the heatmap off a picture. */
function cool(figure) {
  figure.querySelector(".heat").hidden = true;
  for (const tag of figure.querySelectorAll("[aria-pressed=true]")) tag.setAttribute("aria-pressed", "false");
}

function showHeat(tag) {
  const figure = tag.closest("figure");
  const pressed = tag.getAttribute("aria-pressed") === "true";
  cool(figure);
  if (pressed) return;
  const method = tag.closest(".said").dataset.method;
  const heat = figure.querySelector(".heat");
  heat.src = `data:image/png;base64,${data.heat[figure.dataset.picture][method][tag.dataset.column]}`;
  heat.hidden = false;
  tag.setAttribute("aria-pressed", "true");
}

function showImages() {
  const form = document.getElementById("speaker");
  const figures = document.querySelectorAll("figure[data-picture]");
  function speak() {
    for (const figure of figures) {
      cool(figure);
      for (const said of figure.querySelectorAll(".said")) said.hidden = said.dataset.method !== form.elements.method.value;
    }
  }
  form.elements.method.addEventListener("change", speak);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("images").addEventListener("click", (event) => {
    const tag = event.target.closest("button.tag");
    if (tag) showHeat(tag);
  });
  // A browser keeps the choice of a list when a page is loaded anew.
  speak();
}

if (document.getElementById("compare")) compareClasses();
if (document.getElementById("speaker")) showImages();
