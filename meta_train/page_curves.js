// Curves, drawn from the data in the page for the width at hand; values on hover, touch and arrow keys.

const MARKS = { // paths around (0, 0)
  circle: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", square: "M-4,-4h8v8h-8z", triangle: "M0,-5l5,9h-10z", diamond: "M0,-5l5,5l-5,5l-5,-5z",
};
const PRINTED_WIDTH = 460; // of a panel, two beside each other on a sheet, so that their text is 8 points high
const MARGIN = { left: 52, right: 10, top: 8, bottom: 38 };

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A value for people: four digits. */
function short(value) {
  if (value === null || value === undefined) return "diverged";
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
}

function lineLooks(method) {
  return { stroke: `var(--c${method.colour})`, "stroke-width": method.width, "stroke-dasharray": method.dash.join(" ") };
}

function swatch(method) {
  const line = svg("path", { d: "M1,6H35", fill: "none", ...lineLooks(method) });
  const icon = svg("svg", { width: 36, height: 12, "aria-hidden": "true" }, line);
  if (method.marker) icon.append(svg("path", { d: MARKS[method.marker], transform: "translate(18,6)", fill: `var(--c${method.colour})` }));
  return icon;
}

/** Values at which a logarithmic axis gets a line: powers of ten; below two decades also 2 and 5 times these. */
function logTicks([low, high]) {
  const factors = Math.log10(high / low) < 2 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.round(Math.log10(high / low) / 6));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
    if (power % every === 0) ticks.push(...factors.map((factor) => Number(`${factor}e${power}`)));
  return ticks.filter((tick) => tick >= low && tick <= high);
}

function linearTicks(low, high, count) {
  const rough = Math.max((high - low) / count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
  return ticks;
}

class Panel {
  constructor(data, methods, hidden) {
    Object.assign(this, { data, methods, hidden, index: null });
    this.plot = svg("svg", { class: "plot", tabindex: 0, role: "img", "aria-label": `Loss against step: ${data.title}. Arrow keys read values.` });
    this.tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
    this.tip.setAttribute("role", "status");
    this.element = Object.assign(document.createElement("figure"), { className: "panel" });
    const caption = Object.assign(document.createElement("figcaption"), { textContent: data.title });
    this.element.append(caption, this.plot, this.tip);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.show(null));
    this.plot.addEventListener("blur", () => this.show(null));
    this.plot.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.plot.clientWidth !== this.width && this.draw()).observe(this.element);
  }

  visible() {
    return this.methods.filter((method) => !this.hidden.has(method.name));
  }

  draw(width = Math.max(this.element.clientWidth, 200)) {
    this.width = width;
    this.height = Math.round(Math.min(Math.max(this.width * 0.62, 230), 340));
    const { steps, limits } = this.data;
    const [low, high] = [limits[0] / 1.3, limits[1] * 1.3];
    const inner = { width: this.width - MARGIN.left - MARGIN.right, height: this.height - MARGIN.top - MARGIN.bottom };
    const [first, last] = [steps[0], Math.max(steps[steps.length - 1], steps[0] + 1)];
    this.x = (step) => MARGIN.left + ((step - first) / (last - first)) * inner.width;
    this.y = (loss) => MARGIN.top + (Math.log(high / Math.max(loss, 1e-300)) / Math.log(high / low)) * inner.height;
    this.plot.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.clip = this.clip || `clip${document.querySelectorAll("clipPath").length}`;
    const box = { x: MARGIN.left, y: MARGIN.top, ...inner };
    const lines = svg("g", { "clip-path": `url(#${this.clip})` }, ...this.lines());
    this.cursor = svg("path", { class: "cursor" });
    this.plot.replaceChildren(
      svg("clipPath", { id: this.clip }, svg("rect", box)), ...this.axes(box, [low, high], [first, last]),
      lines, svg("rect", { class: "frame", ...box }), this.cursor,
    );
    this.show(this.index);
  }

  axes(box, limits, [first, last]) {
    const bottom = box.y + box.height;
    const parts = [];
    for (const tick of logTicks(limits))
      parts.push(
        svg("path", { class: "grid", d: `M${box.x},${this.y(tick)}h${box.width}` }),
        svg("text", { x: box.x - 6, y: this.y(tick) + 4, "text-anchor": "end" }, short(tick)),
      );
    for (const tick of linearTicks(first, last, box.width / 70))
      parts.push(
        svg("path", { class: "grid", d: `M${this.x(tick)},${box.y}v${box.height}` }),
        svg("text", { x: this.x(tick), y: bottom + 16, "text-anchor": "middle" }, String(tick)),
      );
    parts.push(
      svg("text", { x: box.x + box.width / 2, y: bottom + 32, "text-anchor": "middle" }, "step"),
      svg("text", { transform: `translate(12,${box.y + box.height / 2}) rotate(-90)`, "text-anchor": "middle" }, "loss"),
    );
    if (this.data.mark > first && this.data.mark < last)
      parts.push(
        svg("path", { class: "mark", d: `M${this.x(this.data.mark)},${box.y}v${box.height}` }),
        svg("text", { x: this.x(this.data.mark) + 4, y: box.y + 14 }, "trained to here"),
      );
    return parts;
  }

  lines() {
    const bands = this.visible().filter((method) => this.data.banded.includes(method.name));
    return [...bands.map((method) => this.band(method)), ...this.visible().map((method) => this.curve(method))];
  }

  band(method) {
    const { q25, q75 } = this.data.series[method.name];
    const known = this.data.steps.map((_, index) => index).filter((index) => q25[index] !== null && q75[index] !== null);
    const along = (values, indices) => indices.map((index) => `${this.x(this.data.steps[index]).toFixed(1)},${this.y(values[index]).toFixed(1)}`);
    const points = [...along(q75, known), ...along(q25, known.reverse())];
    return svg("path", { class: "band", d: points.length ? `M${points.join("L")}Z` : "", fill: `var(--c${method.colour})` });
  }

  curve(method) {
    const { mean } = this.data.series[method.name];
    let path = "";
    let open = false;
    mean.forEach((loss, index) => {
      if (loss !== null && loss > 0) path += `${open ? "L" : "M"}${this.x(this.data.steps[index]).toFixed(1)},${this.y(loss).toFixed(1)}`;
      open = loss !== null && loss > 0;
    });
    const group = svg("g", { class: "method", "data-method": method.name }, svg("path", { class: "curve", d: path, ...lineLooks(method) }));
    const gap = Math.max(Math.floor(mean.length / 8), 1);
    if (method.marker)
      for (let index = (this.methods.indexOf(method) * 3) % gap; index < mean.length; index += gap)
        if (mean[index] !== null)
          group.append(svg("path", { d: MARKS[method.marker], fill: `var(--c${method.colour})`, transform: `translate(${this.x(this.data.steps[index])},${this.y(mean[index])})` }));
    return group;
  }

  point(event) {
    const box = this.plot.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * this.width;
    const distances = this.data.steps.map((step) => Math.abs(this.x(step) - at));
    this.show(distances.indexOf(Math.min(...distances)));
  }

  press(event) {
    const last = this.data.steps.length - 1;
    const now = this.index === null ? 0 : this.index;
    const stride = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: Math.max(now - stride, 0), ArrowRight: Math.min(now + stride, last), Home: 0, End: last, Escape: null };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.show(moves[event.key]);
  }

  /** Show all methods' values at the index of a step; null shows none. */
  show(index) {
    this.index = index;
    this.tip.hidden = index === null;
    this.cursor.setAttribute("d", index === null ? "" : `M${this.x(this.data.steps[index])},${MARGIN.top}V${this.height - MARGIN.bottom}`);
    if (index === null) return;
    const table = document.createElement("table");
    const value = (method) => this.data.series[method.name].mean[index];
    const order = (method) => (value(method) === null ? Infinity : value(method));
    for (const method of this.visible().sort((a, b) => (order(a) < order(b) ? -1 : 1))) {
      const { q25, q75 } = this.data.series[method.name];
      const row = table.insertRow();
      row.insertCell().append(swatch(method));
      row.insertCell().append(method.name);
      row.insertCell().append(short(value(method)));
      Object.assign(row.insertCell(), { className: "spread", textContent: `${short(q25[index])} to ${short(q75[index])}` });
    }
    this.tip.replaceChildren(`step ${this.data.steps[index]}`, table);
    this.place(this.x(this.data.steps[index]) * (this.plot.clientWidth / this.width));
  }

  /** Put the values where they hide no curve of this panel: below it, or above where the window ends. */
  place(x) {
    const left = x - this.tip.offsetWidth / 2;
    this.tip.style.left = `${Math.max(0, Math.min(left, this.element.clientWidth - this.tip.offsetWidth))}px`;
    const [frame, plot] = [this.element.getBoundingClientRect(), this.plot.getBoundingClientRect()];
    const below = plot.bottom + this.tip.offsetHeight <= window.innerHeight;
    this.tip.style.top = `${(below ? plot.bottom : plot.top - this.tip.offsetHeight) - frame.top}px`;
  }
}

function drawFigure(element, data) {
  const hidden = new Set();
  const panels = data.panels.map((panel) => new Panel(panel, data.methods, hidden));
  const legend = Object.assign(document.createElement("div"), { className: "legend" });
  legend.setAttribute("role", "group");
  legend.setAttribute("aria-label", "Methods shown");
  for (const method of data.methods) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(swatch(method), method.name);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(method.name)) hidden.add(method.name);
      button.setAttribute("aria-pressed", String(!hidden.has(method.name)));
      panels.forEach((panel) => panel.draw());
    });
    legend.append(button);
  }
  const grid = Object.assign(document.createElement("div"), { className: "panels" });
  grid.append(...panels.map((panel) => panel.element));
  const note = Object.assign(document.createElement("p"), { className: "note" });
  note.textContent =
    "Lines: mean loss. Bands: quartiles, of the learned rules and the best classic alone." +
    (data.panels.some((panel) => panel.mark < panel.steps[panel.steps.length - 1])
      ? " Dashed vertical line: rules were trained, and learning rates tuned, for so many steps." : "");
  element.replaceChildren(legend, grid, note);
  panels.forEach((panel) => panel.draw());
  window.addEventListener("beforeprint", () => panels.forEach((panel) => panel.draw(PRINTED_WIDTH)));
  window.addEventListener("afterprint", () => panels.forEach((panel) => panel.draw()));
}

const figures = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll("[data-figure]").forEach((element) => drawFigure(element, figures[element.dataset.figure]));
