// The random walk on one image, to be touched: Eq. 2, 11 and 12 of the paper in the browser.
//
// `render({ model, el })` is what anywidget asks for; a page has `mount(document)`. Both show a
// "picture", which affinity_lib/showing/widget.py makes. Maps are flat arrays of height x width.

// ---- Arithmetic: no browser is needed for it ----------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** Numbers in half precision from base64. */
export function halves(text) {
  return Float64Array.from(new Uint16Array(bytes(text).buffer), (code) => {
    const exponent = (code >> 10) & 31;
    const fraction = (code & 1023) / 1024;
    const sign = code >> 15 ? -1 : 1;
    if (exponent === 31) return sign * Infinity; // the distance of what is no pair
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  });
}

/** Maps of height x width numbers that lie end to end, each by itself. */
export function split(numbers, [height, width]) {
  const size = height * width;
  const count = numbers.length / size;
  return Array.from({ length: count }, (_, k) => numbers.subarray(k * size, (k + 1) * size));
}

/** A map at another size, bilinear, as torch's interpolate makes it by default. */
export function resize(map, [height, width], [newHeight, newWidth]) {
  const places = (length, newLength) =>
    Array.from({ length: newLength }, (_, k) => {
      const place = Math.max(((k + 0.5) * length) / newLength - 0.5, 0);
      const low = Math.floor(place);
      return [low, Math.min(low + 1, length - 1), place - low];
    });
  const columns = places(width, newWidth);
  const resized = new Float64Array(newHeight * newWidth);
  places(height, newHeight).forEach(([top, bottom, down], y) => {
    columns.forEach(([left, right, across], x) => {
      const between = (row) =>
        map[row * width + left] * (1 - across) + map[row * width + right] * across;
      resized[y * newWidth + x] = between(top) * (1 - down) + between(bottom) * down;
    });
  });
  return resized;
}

/** The mean of a map over each cell of stride x stride pixels; beyond its border it is zero. */
function pool(map, [height, width], stride, [rows, columns]) {
  const pooled = new Float64Array(rows * columns);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const cell = Math.floor(y / stride) * columns + Math.floor(x / stride);
      pooled[cell] += map[y * width + x] / stride ** 2;
    }
  }
  return pooled;
}

/** The background map of Eq. 2 and the CAMs on the cells of the walk: where it starts. */
export function start({ cams, camSize, pooling, grid }, alpha) {
  const seen = pooling ? cams.map((map) => resize(map, camSize, pooling.size)) : cams;
  const background = seen[0].map((_, i) => (1 - Math.max(...seen.map((map) => map[i]))) ** alpha);
  const maps = [background, ...seen];
  if (pooling) return maps.map((map) => pool(map, pooling.size, pooling.stride, grid));
  return maps.map((map) => resize(map, camSize, grid));
}

/** The transition matrix T = D^-1 W^beta of Eq. 11, an offset at a time, from -log W. */
export function transition({ distances, offsets, grid: [height, width] }, beta) {
  const degree = new Float64Array(height * width).fill(1);
  const edges = [];
  offsets.forEach(([dy, dx], k) => {
    if (dy >= height || Math.abs(dx) >= width) return; // no pair in so small a map
    const weights = distances[k].map((distance) => Math.exp(-beta * distance));
    const shift = dy * width + dx;
    for (let i = 0; i + shift < degree.length; i++) {
      degree[i] += weights[i];
      degree[i + shift] += weights[i];
    }
    edges.push({ shift, weights });
  });
  return { degree, edges };
}

/** One step: T times a map. */
function step({ degree, edges }, map) {
  const sum = Float64Array.from(map);
  for (const { shift, weights } of edges) {
    for (let i = 0; i + shift < map.length; i++) {
      sum[i] += weights[i] * map[i + shift];
      sum[i + shift] += weights[i] * map[i];
    }
  }
  return sum.map((value, i) => value / degree[i]);
}

/** The Chebyshev coefficients of x^t, up to where the rest is below eps. */
export function coefficients(t, eps = 1e-5) {
  let heads = Math.floor(t / 2);
  let chance = t % 2 ? 0.5 : 1; // of so many heads in t tosses of a coin
  for (let i = 1; i <= heads; i++) chance *= (t - heads + i) / (4 * i);
  const found = [];
  let sum = 0;
  for (let k = t % 2; k <= t && 1 - sum >= eps; k += 2) {
    found[k] = k ? 2 * chance : chance;
    sum += found[k];
    chance *= heads / (t - heads + 1);
    heads -= 1;
  }
  return Array.from(found, (value) => (value ?? 0) / sum);
}

/** A map after t steps, T^t times the map (Eq. 12), as a Chebyshev series in T. */
export function walk(T, map, t) {
  const series = coefficients(t);
  const total = new Float64Array(map.length);
  let previous = null;
  let current = map;
  series.forEach((coefficient, k) => {
    if (k) {
      const stepped = step(T, current);
      const next = k > 1 ? stepped.map((value, i) => 2 * value - previous[i]) : stepped;
      [previous, current] = [current, next];
    }
    if (coefficient) current.forEach((value, i) => (total[i] += coefficient * value));
  });
  return total;
}

/** What a map of one 1 becomes in t steps. */
export function spread(T, cell, t) {
  const one = new Float64Array(T.degree.length);
  one[cell] = 1;
  return walk(T, one, t);
}

/** The label of the highest map at each pixel of the image. */
export function labelsOf(maps, tags) {
  const numbers = [0, ...tags];
  return Uint8Array.from(maps[0], (_, i) => {
    let best = 0;
    for (let k = 1; k < maps.length; k++) if (maps[k][i] > maps[best][i]) best = k;
    return numbers[best];
  });
}

/** Intersection over union of each label that occurs, where the truth is not void (255). */
export function iou(truth, labels) {
  const counts = new Map();
  const count = (label, both) => {
    const [common, either] = counts.get(label) ?? [0, 0];
    counts.set(label, [common + both, either + 1]);
  };
  truth.forEach((label, i) => {
    if (label === 255) return;
    count(label, Number(label === labels[i]));
    if (label !== labels[i]) count(labels[i], 0);
  });
  return new Map([...counts].map(([label, [common, either]]) => [label, common / either]));
}

/** A picture with its numbers as arrays. */
export function decode(picture) {
  const cams = split(halves(picture.cams), picture.camSize);
  const distances = split(halves(picture.distances), picture.grid);
  const runs = picture.truth?.split(" ").map(Number); // label, length, label, length, ...
  const truth = runs ? new Uint8Array(picture.size[0] * picture.size[1]) : null;
  for (let k = 0, end = 0; runs && k < runs.length; k += 2) {
    truth.fill(runs[k], end, end + runs[k + 1]);
    end += runs[k + 1];
  }
  return { ...picture, cams, distances, truth, heat: split(bytes(picture.heat), [1, 3]) };
}

// ---- What is seen and touched -------------------------------------------------------------------

const MIME = "application/vnd.affinity-lib.walk+json";
const SETTINGS = {
  alpha: ["α background", [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]],
  beta: ["β affinities", [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]],
  t: ["t steps", [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]],
};
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const STYLE = `
  .walk { container-type: inline-size; padding: .5rem; background: #fff; color: #1c2430;
    font: 14px/1.4 system-ui, sans-serif; overflow-wrap: normal; }
  .settings { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: 0 1.5rem;
    padding: .2rem 0; background: #fff; }
  .settings label { display: flex; flex: 1 1 17rem; gap: .6rem; align-items: center; }
  .settings span { min-width: 6rem; }
  output { min-width: 2.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
  input { flex: 1; min-width: 6rem; height: 2rem; margin: 0; accent-color: #0b5394; }
  select, button { padding: .3rem .6rem; font: inherit; }
  .head { display: flex; justify-content: space-between; align-items: center;
    margin: .7rem 0 .4rem; }
  h3 { margin: 0; font-size: 1rem; }
  .panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .6rem; }
  figure { margin: 0; }
  canvas { display: block; width: 100%; cursor: crosshair; touch-action: manipulation; }
  :focus-visible { outline: 3px solid #0b5394; outline-offset: 2px; }
  figcaption, p { margin: .2rem 0 0; color: #4a5668; font-size: .85rem; }
  table { margin: .6rem 0; border-collapse: collapse; }
  th, td { padding: .2rem 0 .2rem 1rem; border-bottom: 1px solid #e8ebef; text-align: right;
    font-weight: normal; font-variant-numeric: tabular-nums; }
  @container (max-width: 36rem) {
    .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
    th, td { padding-left: .4rem; }
  }
  th:first-child { padding-left: 0; text-align: left; white-space: nowrap; }
  i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border: 1px solid; }
`;

/** Show a picture in an element of a notebook or a page. */
async function render({ model, el }) {
  const picture = decode(model.get("picture"));
  const { grid, size, tags, truth } = picture;
  const labels = [0, ...tags];
  const names = labels.map((label) => ["background", ...picture.names][label]);
  const paint = await painter(picture);

  // What is chosen, and what follows from it.
  const run = { alpha: picture.alpha, beta: picture.beta, t: picture.t };
  const startOf = kept((alpha) => start(picture, alpha));
  const transitionOf = kept((beta) => transition(picture, beta));
  const beforeOf = kept((alpha) => labelled(startOf(alpha)));
  const afterOf = kept((alpha, beta, t) =>
    labelled(startOf(alpha).map((map) => walk(transitionOf(beta), map, t))),
  );
  const now = { ...run, map: picture.map, cell: picture.cell };
  let waiting = false;

  function labelled(maps) {
    const large = maps.map((map) => resize(map, grid, size));
    const found = labelsOf(large, tags);
    return { maps, large, found, scores: truth ? iou(truth, found) : new Map() };
  }

  function change(values) {
    Object.assign(now, values);
    if (!waiting) requestAnimationFrame(update);
    waiting = true;
  }

  function choose(...place) {
    const [y, x] = place.map((k, axis) => Math.min(Math.max(Math.floor(k), 0), grid[axis] - 1));
    change({ cell: y * grid[1] + x });
  }

  // The elements.
  const panels = {};
  const said = element("p", { id: "said", ariaLive: "polite" });
  const table = element("table");
  const select = element("select", {}, ...names.map((name) => element("option", {}, name)));
  select.onchange = () => change({ map: select.selectedIndex });
  const reset = element("button", { type: "button", onclick: () => change(run) }, "as in this run");
  const sliders = Object.entries(SETTINGS).map(([name, [title, usual]]) => {
    const values = [...new Set([...usual, run[name]])].sort((a, b) => a - b);
    const input = element("input", { type: "range", max: values.length - 1, ariaLabel: title });
    const output = element("output");
    input.oninput = () => change({ [name]: values[input.value] });
    const follow = () => {
      input.value = values.indexOf(now[name]);
      input.ariaValueText = output.textContent = String(now[name]);
    };
    return { follow, label: element("label", {}, element("span", {}, title), input, output) };
  });
  const host = element("div");
  host.dataset.lmSuppressShortcuts = "true"; // JupyterLab's arrow keys, which leave the cell
  host.attachShadow({ mode: "open" }).append(
    element("style", {}, STYLE),
    element("div", { className: "walk" },
      element("div", { className: "settings" }, ...sliders.map(({ label }) => label)),
      element("div", { className: "head" }, element("h3", {}, "One cell"), reset),
      row("photograph", "step", "steps", ...(truth ? ["truth"] : [])),
      said,
      element("div", { className: "head" }, element("h3", {}, "All cells"),
        element("label", {}, "map of ", select)),
      row("map before", "map after", "labels before", "labels after"),
      table,
    ),
  );
  el.append(host);
  const { canvas } = panels.photograph;
  Object.assign(canvas, { tabIndex: 0, role: "application" });
  canvas.ariaLabel = "Photograph; the arrow keys move the chosen cell";
  canvas.setAttribute("aria-describedby", "said");
  canvas.onkeydown = (event) => {
    if (!(event.key in MOVES)) return;
    event.preventDefault();
    const [down, right] = MOVES[event.key];
    choose(Math.floor(now.cell / grid[1]) + down, (now.cell % grid[1]) + right);
  };
  update();

  function row(...keys) {
    const pick = (down, right) => choose(down * grid[0], right * grid[1]);
    for (const key of keys) panels[key] = panel(key, size, pick);
    return element("div", { className: "panels" }, ...keys.map((key) => panels[key].figure));
  }

  function show(key, caption, kind, values) {
    panels[key].caption.textContent = caption;
    if (key !== "photograph") panels[key].canvas.ariaLabel = caption;
    paint(panels[key].canvas, now.cell, kind, values);
  }

  function update() {
    waiting = false;
    const { alpha, beta, t, cell, map } = now;
    sliders.forEach(({ follow }) => follow());
    select.selectedIndex = map;
    const T = transitionOf(beta);
    const near = cellsAround(picture, cell);
    const powers = spread(T, cell, 1).map((value, i) => (near[i] ? value * T.degree[i] : NaN));
    const later = spread(T, cell, t);
    const most = highest(later);
    const nearest = highest(powers.filter((value, i) => near[i] && i !== cell));
    show("photograph", "click, tap or arrow keys: choose a cell", "photograph");
    show("step", `its affinities to the power β = ${beta}; brightest ${short(nearest)}`, "cells",
      powers.map((value) => Math.min(value / nearest, 1)));
    show("steps", `a 1 in it after t = ${t} steps; brightest ${short(most)}`, "cells",
      later.map((value) => value / most));
    if (truth) show("truth", "truth", "labels", truth);
    const results = { before: beforeOf(alpha), after: afterOf(alpha, beta, t) };
    for (const [when, { large, found, scores }] of Object.entries(results)) {
      const at = time(when === "before" ? 0 : t);
      const top = Math.max(highest(large[map]), 1e-9);
      show(`map ${when}`, `${names[map]}, ${at}; brightest ${short(top)}`, "scores",
        large[map].map((value) => value / top));
      const mean = [...scores.values()].reduce((sum, value) => sum + value / scores.size, 0);
      show(`labels ${when}`, `labels, ${at}${truth ? `; mean IoU ${percent(mean)} %` : ""}`,
        "labels", found);
    }
    said.textContent =
      `Row ${Math.floor(cell / grid[1]) + 1} of ${grid[0]}, column ${(cell % grid[1]) + 1} of ` +
      `${grid[1]}. A step stays here with probability ${short(1 / T.degree[cell])} and goes to ` +
      `the likeliest of ${near.filter(Boolean).length - 1} neighbours with ` +
      `${short(nearest / T.degree[cell])}.`;
    fill(Object.values(results));
  }

  /** The table: what each map says here, and how well its label fits. */
  function fill(results) {
    const titles = [0, now.t].map((t) => `here, ${time(t)}`);
    if (truth) titles.push(...[0, now.t].map((t) => `IoU in %, ${time(t)}`));
    const head = ["", ...titles].map((text) => element("th", { scope: "col" }, text));
    const rows = labels.map((label, k) => {
      const color = element("i", { style: `background: rgb(${picture.colors[label]})` });
      const texts = results.map(({ maps }) => maps[k][now.cell].toFixed(3));
      if (truth) texts.push(...results.map(({ scores }) => percent(scores.get(label))));
      const cells = texts.map((text) => element("td", {}, text));
      return element("tr", {}, element("th", { scope: "row" }, color, names[k]), ...cells);
    });
    table.replaceChildren(element("tr", {}, ...head), ...rows);
  }
}

/** Show the pictures of a page: each block of data takes the place of the element before it. */
export function mount(page) {
  for (const block of page.querySelectorAll(`script[type="${MIME}"]`)) {
    const el = page.createElement("div");
    const model = new Map([["picture", JSON.parse(block.textContent)]]);
    render({ model, el }).then(() => {
      block.previousElementSibling?.remove();
      block.replaceWith(el);
    });
  }
}

/** A canvas with its caption; a place in it is told in shares of its height and width. */
function panel(key, [height, width], pick) {
  const scale = Math.ceil(400 / Math.max(height, width));
  const canvas = element("canvas", { width: scale * width, height: scale * height, role: "img" });
  canvas.dataset.panel = key;
  canvas.onclick = (event) =>
    pick(event.offsetY / canvas.clientHeight, event.offsetX / canvas.clientWidth);
  canvas.onpointermove = (event) =>
    event.buttons && event.pointerType === "mouse" && canvas.onclick(event);
  const caption = element("figcaption");
  return { canvas, caption, figure: element("figure", {}, canvas, caption) };
}

/** What paints a panel: the photograph, colours over it, and a frame around the chosen cell. */
async function painter({ image, size: [height, width], grid: [rows, columns], colors, heat }) {
  const photograph = element("img", { src: image });
  await photograph.decode();
  const layer = element("canvas", { width, height });
  const shade = (value) => heat[Math.round(value * (heat.length - 1))]; // none for NaN
  const cellOf = (y, x) =>
    Math.floor((y * rows) / height) * columns + Math.floor((x * columns) / width);
  const colorOf = {
    scores: (values, i) => shade(values[i]),
    cells: (values, i) => shade(values[cellOf(Math.floor(i / width), i % width)]),
    labels: (values, i) => values[i] % 255 && colors[values[i]], // none for 0 and 255
  };

  return (canvas, cell, kind, values) => {
    const context = canvas.getContext("2d");
    const [wide, high] = [canvas.width, canvas.height];
    context.drawImage(photograph, 0, 0, wide, high);
    if (kind === "cells" || kind === "labels") {
      context.fillStyle = "#808080";
      context.globalCompositeOperation = "saturation"; // grey
      context.fillRect(0, 0, wide, high);
      context.globalCompositeOperation = "source-over";
      context.globalAlpha = 0.45; // and dim
      context.fillRect(0, 0, wide, high);
    }
    if (values) {
      const pixels = new ImageData(width, height);
      for (let i = 0; i < width * height; i++) {
        const color = colorOf[kind](values, i);
        if (color) pixels.data.set([...color, 255], 4 * i);
      }
      layer.getContext("2d").putImageData(pixels, 0, 0);
      context.globalAlpha = 0.7;
      context.imageSmoothingEnabled = kind === "scores";
      context.drawImage(layer, 0, 0, wide, high);
      context.imageSmoothingEnabled = true;
    }
    context.globalAlpha = 1;
    const stroke = (strokeStyle, lineWidth, path) => {
      Object.assign(context, { strokeStyle, lineWidth });
      context.stroke(path);
    };
    if (kind === "labels") stroke("#fff", 2, contour(values, [height, width], wide / width));
    const frame = new Path2D();
    const [down, right] = [high / rows, wide / columns];
    frame.rect((cell % columns) * right, Math.floor(cell / columns) * down, right, down);
    stroke("#000", 6, frame);
    stroke("#fff", 3, frame);
  };
}

/** The lines between pixels of different labels. */
function contour(labels, [height, width], scale) {
  const path = new Path2D();
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const right = x + 1 < width && labels[i] !== labels[i + 1];
      const below = y + 1 < height && labels[i] !== labels[i + width];
      if (!right && !below) continue;
      path.moveTo((x + 1) * scale, (right ? y : y + 1) * scale);
      path.lineTo((x + 1) * scale, (y + 1) * scale);
      if (below) path.lineTo(x * scale, (y + 1) * scale);
    }
  }
  return path;
}

/** Which cells are no farther from one than its neighbours. */
function cellsAround({ offsets, grid: [rows, columns] }, cell) {
  const farthest = Math.max(...offsets.map(([dy, dx]) => dy * dy + dx * dx));
  const [y, x] = [Math.floor(cell / columns), cell % columns];
  return Array.from({ length: rows * columns }, (_, i) => {
    const [down, right] = [Math.floor(i / columns) - y, (i % columns) - x];
    return down * down + right * right <= farthest;
  });
}

/** The same function, which keeps its last result as long as its arguments stay the same. */
function kept(compute) {
  let [known, result] = [[], null];
  return (...given) => {
    if (given.some((value, k) => value !== known[k])) [known, result] = [given, compute(...given)];
    return result;
  };
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const highest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const time = (t) => `t\u00a0=\u00a0${t}`; // in one line
const short = (value) => String(Number(value.toPrecision(2)));
const percent = (share) => (share === undefined ? "" : (100 * share).toFixed(1));

export default { render };
