// The report's script: draws what the JSON in #data holds. No library, nothing is loaded, text is only ever set as text.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const VOID = 255;
const UNSEEN = new Set(DATA.unseen);
const redraws = []; // what is painted on a canvas and must be painted again when the colours change

// --- small helpers ---

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  return filled(node, attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(node.style, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function nameOf(id) {
  return id === VOID ? "void" : DATA.names[id] ?? `class ${id}`;
}

function marked(id) {
  return nameOf(id) + (UNSEEN.has(id) ? " (unseen)" : "");
}

function named(id) {
  return el("span", { class: UNSEEN.has(id) ? "unseen" : "" }, swatch(id), marked(id));
}

function swatch(id) {
  return el("span", { class: "swatch", "aria-hidden": "true", style: { background: id === VOID ? "transparent" : DATA.colours[id] } });
}

function number(value, digits = 3) {
  return value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
}

function percent(value) {
  return value === null ? "–" : (100 * value).toFixed(1) + " %";
}

function paint(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

function bytes(base64) {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

function numbers16(base64) {
  const raw = bytes(base64);
  const out = new Uint16Array(raw.length / 2);
  for (let i = 0; i < out.length; i++) out[i] = raw[2 * i] | (raw[2 * i + 1] << 8);
  return out;
}

function section(id, title, ...children) {
  document.getElementById("nav").append(el("a", { href: "#" + id }, title));
  const node = el("section", { id, "aria-labelledby": id + "-title" }, el("h2", { id: id + "-title" }, title), ...children);
  document.getElementById("main").append(node);
  return node;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// --- settings and scores ---

function drawRun() {
  const tiles = (DATA.summary ?? []).map((each) =>
    el("div", { class: "tile" }, el("b", {}, number(each.value)), el("span", {}, each.label)));
  const files = DATA.artifacts.map((each) => {
    const rows = Object.entries(each.params).map(([key, value]) =>
      el("tr", {}, el("td", {}, key), el("td", {}, shown(value))));
    rows.unshift(el("tr", {}, el("td", {}, "digest"), el("td", {}, each.digest)));
    return el("details", {}, el("summary", {}, `${each.file} `, el("span", { class: "soft" }, each.kind)),
      el("div", { class: "scroll" }, el("table", { class: "settings" }, el("tbody", {}, ...rows))));
  });
  section("run", "Run",
    ...DATA.notes.map((note) => el("p", { class: "note" }, note)),
    tiles.length ? el("div", { class: "tiles" }, ...tiles) : null,
    el("p", {}, `${DATA.names.length} classes`, UNSEEN.size ? ", unseen in training: " : ", none of them unseen",
      ...[...UNSEEN].flatMap((id, index) => [index ? ", " : "", el("span", { class: "unseen" }, nameOf(id))])),
    el("h3", {}, "Artifacts and their settings"), ...files);
}

function shown(value) {
  if (value === null) return "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// --- table of classes ---

function drawClasses(showPhotos) {
  const columns = [
    ["class", (row) => nameOf(row.id).toLowerCase(), (row) => named(row.id)],
    ["IoU", (row) => row.iou, (row) => el("span", {}, el("span", { class: "track", "aria-hidden": "true" },
      row.iou ? el("span", { class: "bar", style: { width: 100 * row.iou + "%", background: `var(--${UNSEEN.has(row.id) ? "unseen" : "seen"})` } }) : null),
      el("span", { class: "value" }, number(row.iou) + (row.leftOut ? " *" : "")))],
    ["accuracy", (row) => row.accuracy, (row) => number(row.accuracy)],
    ["photos", (row) => row.photos, (row) => String(row.photos)],
    ["share of pixels", (row) => row.share, (row) => percent(row.share)],
  ];
  const body = el("tbody"), shown = new Set(present(DATA.gallery ?? []));
  const headers = columns.map(([title], index) =>
    el("th", { scope: "col", "aria-sort": "none" }, el("button", { type: "button", onclick: () => sort(index) }, title)));
  let sorted = { index: null, descending: false };

  function sort(index) {
    const descending = sorted.index === index ? !sorted.descending : index > 0;
    sorted = { index, descending };
    headers.forEach((header, place) => {
      header.setAttribute("aria-sort", place !== index ? "none" : descending ? "descending" : "ascending");
      header.firstChild.textContent = columns[place][0] + (place !== index ? "" : descending ? " ↓" : " ↑");
    });
    fill([...DATA.classes].sort(byValue(columns[index][1], descending)));
  }

  function fill(rows) {
    body.replaceChildren(...rows.map((row) => {
      const cells = columns.map(([, , show]) => el("td", {}, show(row)));
      const look = showPhotos === null ? null : el("td", {}, !shown.has(row.id) ? "" : el("button", {
        type: "button", "aria-label": "Show photos of " + marked(row.id), onclick: () => showPhotos(row.id) }, "show"));
      return el("tr", { "data-class": row.id }, ...cells, look);
    }));
  }

  fill(DATA.classes);
  const corner = showPhotos === null ? null : el("th", { scope: "col" }, "");
  const left = DATA.classes.some((row) => row.leftOut);
  section("classes", "Classes", el("div", { class: "scroll" },
    el("table", {}, el("caption", { class: "hint" }, "Select a column's title to sort by it."),
      el("thead", {}, el("tr", {}, ...headers, corner)), body)),
    left ? el("p", { class: "hint" }, "* in too few photos, left out of the means") : null);
}

function byValue(value, descending) {
  return (one, other) => {
    const a = value(one), b = value(other);
    if (a === null || b === null) return (a === null) - (b === null); // what is undefined comes last, either way
    const order = a < b ? -1 : a > b ? 1 : one.id - other.id;
    return descending && a !== b ? -order : order;
  };
}

// --- line charts with a cursor ---

const CHART = { width: 460, height: 300, left: 62, right: 12, top: 12, bottom: 36 };

function lineChart({ id, x, y, xTitle, yTitle, xRange, yRange, log = false, whole = false, colour = "seen", start, marks = [], say }) {
  const { width, height, left, right, top, bottom } = CHART;
  const scaleX = (value) => left + ((value - xRange[0]) / (xRange[1] - xRange[0] || 1)) * (width - left - right);
  const place = log ? Math.log10 : (value) => value;
  const low = place(yRange[0]), high = place(yRange[1]);
  const scaleY = (value) => height - bottom - ((place(value) - low) / (high - low || 1)) * (height - top - bottom);
  const known = x.map((_, i) => i).filter((i) => x[i] !== null && y[i] !== null && (!log || y[i] > 0));
  const cursor = svg("circle", { r: 5, class: "cursor" });
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${yTitle} against ${xTitle}` },
    ...ticks(xRange, false).filter((value) => !whole || Number.isInteger(value)).map((value) => svg("g", {},
      svg("path", { class: "grid", d: `M${scaleX(value)} ${top}V${height - bottom}` }),
      svg("text", { x: scaleX(value), y: height - bottom + 15, "text-anchor": "middle" }, short(value)))),
    ...ticks(yRange, log).map((value) => svg("g", {},
      svg("path", { class: "grid", d: `M${left} ${scaleY(value)}H${width - right}` }),
      svg("text", { x: left - 6, y: scaleY(value) + 4, "text-anchor": "end" }, short(value)))),
    svg("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
    svg("path", { class: "line", style: { stroke: `var(--${colour})` },
      d: known.map((i, n) => `${n ? "L" : "M"}${scaleX(x[i]).toFixed(1)} ${scaleY(y[i]).toFixed(1)}`).join("") }),
    ...marks.map((mark) => svg("g", {},
      svg("circle", { cx: scaleX(x[mark.at]), cy: scaleY(y[mark.at]), r: 5, style: { fill: `var(--${mark.colour})` } }),
      svg("text", { class: "name", x: scaleX(x[mark.at]) + 8, y: scaleY(y[mark.at]) + (mark.below ? 14 : -6) }, mark.text))),
    cursor,
    svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xTitle),
    svg("text", { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle));
  const output = el("output", { class: "readout", id: id + "-readout", style: { display: "block" } });
  const slider = el("input", { type: "range", min: 0, max: Math.max(known.length - 1, 0), step: 1, value: 0,
    id: id + "-slider", "aria-label": `Place on the curve of ${yTitle}`, oninput: () => move(Number(slider.value)) });

  function move(n) {
    if (!known.length) { output.textContent = "nothing recorded"; cursor.remove(); return; }
    const i = known[n];
    slider.value = n;
    cursor.setAttribute("cx", scaleX(x[i]));
    cursor.setAttribute("cy", scaleY(y[i]));
    output.textContent = say(i);
    slider.setAttribute("aria-valuetext", output.textContent);
  }

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const px = (event.clientX - box.left) * (width / box.width), py = (event.clientY - box.top) * (height / box.height);
    let best = 0, least = Infinity;
    known.forEach((i, n) => {
      const distance = (scaleX(x[i]) - px) ** 2 + (marks.length ? (scaleY(y[i]) - py) ** 2 : 0);
      if (distance < least) [best, least] = [n, distance];
    });
    move(best);
  });
  move(Math.max(known.indexOf(start), 0));
  return el("div", { id }, picture, slider, output);
}

function ticks([low, high], log) {
  if (log) {
    const out = [];
    for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power++) out.push(10 ** power);
    return out.length > 1 ? out : [low, high];
  }
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const out = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) out.push(value);
  return out;
}

function short(value) {
  return value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5) ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}

function extent(values) {
  const known = values.filter((value) => value !== null);
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
}

function drawCurve() {
  const { gamma, seen, unseen, harmonic, zero, oracle, area } = DATA.curve;
  const top = 1.08 * Math.max(extent(seen)[1], extent(unseen)[1], 0.1);
  const chart = lineChart({
    id: "curve-chart", x: unseen, y: seen, xTitle: "mIoU, unseen classes", yTitle: "mIoU, seen classes",
    xRange: [0, top], yRange: [0, top], start: zero,
    marks: [{ at: zero, colour: "seen", text: "as scored" }, { at: oracle, colour: "unseen", text: "oracle", below: true }],
    say: (i) => `seen bias ${signed(gamma[i])}: seen ${number(seen[i])}, unseen ${number(unseen[i])}, harmonic ${number(harmonic[i])}`,
  });
  section("curve", "Seen and unseen",
    el("p", {}, "Each point subtracts another number, the seen bias, from the scores of all seen classes. ",
      `Area under the curve ${number(area)}. The oracle is the best harmonic mIoU, chosen on the test photos: a bound, no result.`),
    el("div", { style: { maxWidth: "560px" } }, chart));
}

function signed(value) {
  return (value < 0 ? "−" : "+") + Math.abs(value).toPrecision(3);
}

function drawHistory() {
  const { step, loss, rate, epoch, miou } = DATA.history;
  const positive = loss.filter((value) => value > 0);
  const log = positive.length > 0 && positive.length === loss.length && Math.max(...positive) > 30 * Math.min(...positive);
  const steps = [1, Math.max(...step, 2)];
  section("training", "Training", el("div", { class: "charts" },
    lineChart({ id: "loss-chart", x: step, y: loss, xTitle: "step", yTitle: "training loss", xRange: steps, log,
      yRange: log ? extent(loss) : [Math.min(0, extent(loss)[0]), extent(loss)[1]],
      say: (i) => `step ${step[i]}: loss ${number(loss[i], 4)}` }),
    lineChart({ id: "rate-chart", x: step, y: rate, xTitle: "step", yTitle: "learning rate", xRange: steps,
      yRange: [0, extent(rate)[1] || 1], colour: "third", say: (i) => `step ${step[i]}: learning rate ${rate[i].toPrecision(3)}` }),
    lineChart({ id: "miou-chart", x: epoch, y: miou, xTitle: "epoch", yTitle: "val mIoU, seen classes",
      xRange: [1, Math.max(...epoch, 2)], yRange: [0, 1], whole: true, colour: "unseen",
      say: (i) => `epoch ${epoch[i]}: val mIoU of seen classes ${number(miou[i])}` })));
}

// --- confusion matrix ---

function drawConfusion() {
  const counts = DATA.confusion;
  const all = counts.map((_, id) => id).filter((id) => counts[id].some((n) => n) || counts.some((row) => row[id]));
  const order = [...all.filter((id) => !UNSEEN.has(id)), ...all.filter((id) => UNSEEN.has(id))];
  if (!order.length) return;
  const totals = counts.map((row) => row.reduce((sum, n) => sum + n, 0));
  const pitch = clamp(Math.floor(640 / order.length), 5, 44);
  const font = clamp(pitch - 8, 0, 12), margin = font > 5 ? 120 : 8;
  const side = margin + pitch * order.length + 4;
  const canvas = el("canvas", { tabindex: 0, role: "img", id: "confusion-matrix", "aria-describedby": "confusion-readout",
    "aria-label": "Confusion matrix; the arrow keys move from cell to cell" });
  const output = el("output", { id: "confusion-readout", class: "readout", style: { display: "block", minWidth: "17rem", maxWidth: "22rem" } });
  let row = 0, column = 0;

  function draw() {
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.height = side * scale;
    canvas.style.width = side + "px";
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = `${font}px system-ui, sans-serif`;
    order.forEach((truth, r) => {
      if (margin > 20) label(pen, truth, r);
      order.forEach((predicted, c) => {
        pen.fillStyle = totals[truth] ? `rgb(${mixed(paint("panel"), paint("seen"), counts[truth][predicted] / totals[truth])})` : paint("line");
        pen.fillRect(margin + c * pitch, margin + r * pitch, pitch - (pitch > 8 ? 1 : 0), pitch - (pitch > 8 ? 1 : 0));
        if (pitch >= 26) figure(pen, r, c, counts[truth][predicted] / totals[truth]);
      });
    });
    pen.strokeStyle = paint("ink");
    pen.lineWidth = 2;
    pen.strokeRect(margin + column * pitch, margin + row * pitch, pitch - 1, pitch - 1);
  }

  function figure(pen, r, c, share) {
    if (!(share >= 0.005)) return;
    const [red, green, blue] = mixed(paint("panel"), paint("seen"), share);
    pen.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue > 128 ? "#000" : "#fff";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText((100 * share).toFixed(0), margin + (c + 0.5) * pitch, margin + (r + 0.5) * pitch);
  }

  function label(pen, id, place) {
    const middle = margin + (place + 0.5) * pitch;
    pen.fillStyle = paint(UNSEEN.has(id) ? "unseen" : "ink");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.fillText(clipped(nameOf(id), 16), margin - 6, middle, margin - 8);
    pen.save();
    pen.translate(middle, margin - 6);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "left";
    pen.fillText(clipped(nameOf(id), 16), 0, 0, margin - 8);
    pen.restore();
  }

  function move(r, c) {
    row = clamp(r, 0, order.length - 1);
    column = clamp(c, 0, order.length - 1);
    const truth = order[row], predicted = order[column], count = counts[truth][predicted];
    const share = totals[truth] ? `${((100 * count) / totals[truth]).toFixed(1)} % (${count.toLocaleString("en")} pixels)` : "no true pixel";
    output.replaceChildren(el("div", {}, "truth: ", named(truth)), el("div", {}, "predicted: ", named(predicted)), el("div", {}, share));
    draw();
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), scale = side / box.width;
    const c = Math.floor(((event.clientX - box.left) * scale - margin) / pitch);
    const r = Math.floor(((event.clientY - box.top) * scale - margin) / pitch);
    if (r >= 0 && c >= 0 && r < order.length && c < order.length) move(r, c);
  });
  canvas.addEventListener("keydown", (event) => arrows(event, (dx, dy) => move(row + dy, column + dx)));
  section("confusion", "Confusion",
    el("p", {}, "Each row is a true class, each cell the share of its pixels given to one class; seen classes first. Point at a cell, or move with the arrow keys."),
    el("div", { class: "side" }, el("div", { class: "scroll" }, canvas), output));
  move(0, 0);
  redraws.push(draw);
}

function clipped(text, length) {
  return [...text].length > length ? [...text].slice(0, length - 1).join("") + "…" : text;
}

// Between two colours; the root lets small shares be seen.
function mixed(from, to, share) {
  const a = channels(from), b = channels(to);
  return a.map((value, i) => Math.round(value + (b[i] - value) * Math.sqrt(share)));
}

function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function arrows(event, move, step = 1) {
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  const found = moves[event.key];
  if (!found || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  move(...found);
}

// --- joint space ---

function drawSpace(showPlace) {
  const { method, classes, words, points } = DATA.space;
  const width = 900, height = 620, pad = 40;
  const all = [...classes, ...points.map((point) => point.at)];
  const xs = extent(all.map((at) => at[0])), ys = extent(all.map((at) => at[1]));
  const x = (at) => pad + ((at[0] - xs[0]) / (xs[1] - xs[0] || 1)) * (width - 2 * pad);
  const y = (at) => height - pad - ((at[1] - ys[0]) / (ys[1] - ys[0] || 1)) * (height - 2 * pad);
  const colourOf = (id) => (id === VOID ? "transparent" : DATA.colours[id]);
  const isShown = { pixels: true, classes: true, seen: true, unseen: true };
  const spots = [
    ...points.map((point, index) => ({ at: point.at, id: point.truth === VOID ? point.predicted : point.truth, point, index })),
    ...classes.map((at, id) => ({ at, id, point: null })),
  ];
  const nodes = spots.map((spot) => spot.point
    ? svg("circle", { cx: x(spot.at), cy: y(spot.at), r: 3, style: { fill: colourOf(spot.id), stroke: "var(--soft)", strokeWidth: 0.4, opacity: 0.75 } })
    : svg(UNSEEN.has(spot.id) ? "rect" : "circle", { ...(UNSEEN.has(spot.id)
        ? { x: x(spot.at) - 6, y: y(spot.at) - 6, width: 12, height: 12 } : { cx: x(spot.at), cy: y(spot.at), r: 6 }),
        style: { fill: colourOf(spot.id), stroke: UNSEEN.has(spot.id) ? "var(--unseen)" : "var(--ink)", strokeWidth: UNSEEN.has(spot.id) ? 3 : 1.5 } }));
  const taken = [];
  const titles = classes.map((at, id) => {
    const text = clipped(nameOf(id), 20), long = 6.4 * [...text].length;
    const places = [[10, 4], [-10 - long, 4], [-long / 2, -11], [-long / 2, 19], [10, -9], [10, 17]].map(([dx, dy]) => [x(at) + dx, y(at) + dy]);
    const spot = places.find(([px, py]) => px > 4 && px + long < width - 4 && !taken.some(([qx, qy, other]) => Math.abs(py - qy) < 13 && px < qx + other && qx < px + long)) ?? places[0];
    taken.push([...spot, long]);
    return svg("text", { class: "name" + (UNSEEN.has(id) ? " unseen" : ""), x: spot[0], y: spot[1] }, text);
  });
  const ring = svg("circle", { r: 10, style: { fill: "none", stroke: "var(--focus)", strokeWidth: 3 } });
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", id: "space-plane",
    "aria-label": "Joint space; the arrow keys go from point to point", "aria-describedby": "space-readout" },
    svg("rect", { x: 1, y: 1, width: width - 2, height: height - 2, class: "grid", rx: 8 }), ...nodes, ...titles, ring);
  const output = el("output", { id: "space-readout", class: "readout", style: { display: "block" } });
  let current = null;

  function visible() {
    return spots.map((_, i) => i).filter((i) => isShown[spots[i].point ? "pixels" : "classes"] && isShown[UNSEEN.has(spots[i].id) ? "unseen" : "seen"]);
  }

  function update() {
    const shown = new Set(visible());
    nodes.forEach((node, i) => node.setAttribute("visibility", shown.has(i) ? "visible" : "hidden"));
    titles.forEach((title, id) => title.setAttribute("visibility", shown.has(points.length + id) ? "visible" : "hidden"));
    if (!shown.has(current)) move(shown.size ? [...shown].at(-1) : null);
  }

  function move(i) {
    current = i;
    ring.setAttribute("visibility", i === null ? "hidden" : "visible");
    if (i === null) { output.textContent = "nothing is shown"; return; }
    const spot = spots[i];
    ring.setAttribute("cx", x(spot.at));
    ring.setAttribute("cy", y(spot.at));
    output.replaceChildren(...(spot.point ? sayPixel(spot.point) : sayClass(spot.id)));
  }

  function sayClass(id) {
    return [el("b", {}, named(id)), el("div", {}, "class vector of ", el("q", {}, words[id]))];
  }

  function sayPixel(point) {
    const near = point.words.map((word) => DATA.words[word]);
    return [el("b", {}, "pixel"), el("div", {}, "truth: ", point.truth === VOID ? "unknown" : named(point.truth)),
      el("div", {}, "predicted: ", named(point.predicted)), near.length ? el("div", {}, "nearest words: ", near.join(", ")) : null,
      el("div", { class: "soft" }, "in ", DATA.gallery[point.photo].id),
    ].filter((node) => node !== null);
  }

  function nearest(event) {
    const box = picture.getBoundingClientRect();
    const px = ((event.clientX - box.left) * width) / box.width, py = ((event.clientY - box.top) * height) / box.height;
    let best = null, least = Infinity;
    for (const i of visible()) {
      const distance = (x(spots[i].at) - px) ** 2 + (y(spots[i].at) - py) ** 2 - (spots[i].point ? 0 : 40);
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  function open() {
    if (current !== null && spots[current].point && showPlace) showPlace(spots[current].point.photo, spots[current].point.place);
  }

  picture.addEventListener("pointermove", (event) => { const i = nearest(event); if (i !== null) move(i); });
  picture.addEventListener("click", open);
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Enter") open();
    const shown = visible();
    arrows(event, (dx, dy) => shown.length && move(shown[(shown.indexOf(current) + dx + dy + shown.length) % shown.length]));
  });
  const boxes = Object.keys(isShown).map((key) => {
    const box = el("input", { type: "checkbox", checked: true, id: "space-" + key, onchange: () => { isShown[key] = box.checked; update(); } });
    return el("label", {}, box, " " + { pixels: "pixel embeddings", classes: "class vectors", seen: "seen", unseen: "unseen" }[key]);
  });
  const how = { pca: "PCA: distances can be compared", tsne: "t-SNE: neighbours stay together, distances and axes mean nothing",
    umap: "UMAP: neighbours stay together, distances and axes mean nothing" }[method];
  section("space", "Joint space",
    el("p", {}, `Class vectors (large; unseen ones square) and pixel embeddings (small, in the colour of their true class) in the plane by ${how}. `,
      points.length ? "A click, or Enter, opens a pixel's place in its photo." : ""),
    el("div", { class: "controls", role: "group", "aria-label": "What is shown" }, ...boxes), picture, output);
  move(spots.length ? spots.length - classes.length : null);
}

// --- gallery ---

function labelMap(packed, size) {
  if (packed === null) return null;
  const values = bytes(packed.values), lengths = numbers16(packed.lengths), out = new Uint8Array(size);
  let at = 0;
  values.forEach((value, i) => { out.fill(value, at, at + lengths[i]); at += lengths[i]; });
  return out;
}

// Unpacked when a photo is first shown.
function unpacked(photo) {
  if (!photo.maps) {
    const size = photo.width * photo.height;
    photo.maps = { truth: labelMap(photo.truth, size), predicted: labelMap(photo.predicted, size) };
    const { cells, words } = photo;
    photo.grid = cells && { ...cells, ids: bytes(cells.ids), scores: numbers16(cells.scores) };
    photo.near = words && { ...words, numbers: numbers16(words.numbers) };
  }
  return photo;
}

// The four cells round a place, u and v in [0, 1), and their weights: the model's own bilinear interpolation.
function corners(grid, u, v) {
  const x = clamp(u * grid.columns - 0.5, 0, grid.width - 1), y = clamp(v * grid.rows - 0.5, 0, grid.height - 1);
  const left = Math.floor(x), top = Math.floor(y);
  const right = Math.min(left + 1, grid.width - 1), bottom = Math.min(top + 1, grid.height - 1);
  const fx = x - left, fy = y - top;
  return [[top, left, (1 - fx) * (1 - fy)], [top, right, fx * (1 - fy)], [bottom, left, (1 - fx) * fy], [bottom, right, fx * fy]];
}

// Scores at a place, best first. A class that a cell does not hold counts there with the cell's lowest.
function scoresAt(grid, u, v) {
  const around = corners(grid, u, v);
  const ids = new Set();
  const cells = around.map(([row, column, weight]) => {
    const start = (row * grid.width + column) * grid.best, found = new Map();
    let least = 0;
    for (let k = start; k < start + grid.best && grid.ids[k] !== VOID; k++) {
      found.set(grid.ids[k], grid.scores[k]);
      least = grid.scores[k];
      if (weight > 0) ids.add(grid.ids[k]);
    }
    return { found, least, weight };
  });
  return [...ids].map((id) => {
    const steps = cells.reduce((sum, { found, least, weight }) => sum + weight * (found.get(id) ?? least), 0);
    return { id, score: grid.low + (steps / 65535) * (grid.high - grid.low) };
  }).sort((one, other) => other.score - one.score || one.id - other.id);
}

// The words nearest to the embedding of the cell that holds a place.
function wordsAt(near, u, v) {
  const row = clamp(Math.floor(v * near.rows), 0, near.height - 1), column = clamp(Math.floor(u * near.columns), 0, near.width - 1);
  const start = (row * near.width + column) * near.nearest;
  return Array.from(near.numbers.slice(start, start + near.nearest), (word) => DATA.words[word]);
}

function drawGallery() {
  const photos = DATA.gallery;
  const layers = ["photo", "truth", "prediction", "error"].filter((layer) =>
    (layer === "photo" && photos.some((p) => p.picture)) || (layer === "truth" && photos.some((p) => p.truth)) ||
    (layer === "prediction" && photos.some((p) => p.predicted)) || (layer === "error" && photos.some((p) => p.truth && p.predicted)));
  const state = { photo: 0, layer: layers.includes("prediction") ? "prediction" : layers.at(-1), opacity: 0.6, of: null, order: "given", u: 0.5, v: 0.5, image: null };
  const last = { key: null, cover: null };
  const canvas = el("canvas", { tabindex: 0, role: "img", id: "viewer", "aria-describedby": "place" });
  const place = el("div", { id: "place", class: "place readout", role: "status" });
  const caption = el("p", { id: "caption" });
  const legend = el("ul", { class: "legend", id: "legend" });
  const strip = el("div", { class: "strip", id: "strip", role: "group", "aria-label": "Photos" });
  const count = el("output", { id: "count", class: "soft" });
  const radios = layers.map((layer) => el("label", {}, el("input", { type: "radio", name: "layer", value: layer,
    checked: layer === state.layer, onchange: () => setLayer(layer) }), " " + layer));
  const filter = el("select", { id: "filter", onchange: () => { state.of = filter.value === "" ? null : Number(filter.value); refill(); } },
    el("option", { value: "" }, "all classes"), ...present(photos).map((id) => el("option", { value: id }, marked(id))));
  const order = el("select", { id: "order", onchange: () => { state.order = order.value; refill(); } },
    el("option", { value: "given" }, "as given"), el("option", { value: "worst" }, "worst IoU first"), el("option", { value: "best" }, "best IoU first"));
  const opacity = el("input", { type: "range", min: 0, max: 100, value: 60, id: "opacity", style: { width: "8rem" },
    oninput: () => { state.opacity = opacity.value / 100; draw(); } });

  function score(index) {
    const ious = photos[index].ious;
    if (state.of !== null) return ious[state.of] ?? null;
    const values = Object.values(ious);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }

  function chosen() {
    const kept = photos.map((_, id) => ({ id })).filter(({ id }) => state.of === null || photos[id].present.includes(state.of));
    if (state.order !== "given") kept.sort(byValue(({ id }) => score(id), state.order === "best"));
    return kept.map(({ id }) => id);
  }

  function refill() {
    const kept = chosen();
    count.textContent = `${kept.length} of ${photos.length} photos`;
    strip.replaceChildren(...kept.map((index) => el("button", { type: "button", "data-photo": index, "aria-pressed": String(index === state.photo), onclick: () => show(index) },
      thumbnail(photos[index]), el("span", {}, photos[index].id), el("span", { class: "soft" }, "IoU " + number(score(index))))));
    if (kept.length && !kept.includes(state.photo)) show(kept[0]);
    else describe();
  }

  function show(index, u = 0.5, v = 0.5) {
    Object.assign(state, { photo: index, u, v, image: null });
    for (const button of strip.children) button.setAttribute("aria-pressed", String(Number(button.dataset.photo) === index));
    const photo = unpacked(photos[index]);
    canvas.width = photo.width;
    canvas.height = photo.height;
    canvas.style.width = `min(100%, calc(75vh * ${photo.width / photo.height}))`; // all of it in view, a small one enlarged
    describe();
    if (photo.picture) {
      const image = new Image();
      image.onload = () => { if (photos[state.photo] === photo) { state.image = image; draw(); canvas.dataset.ready = index; } };
      image.src = "data:image/jpeg;base64," + photo.picture;
    } else canvas.dataset.ready = index;
    draw();
    look();
  }

  function describe() {
    const photo = photos[state.photo], mean = score(state.photo);
    caption.replaceChildren(el("b", {}, photo.id), ` ${photo.fullWidth} × ${photo.fullHeight} pixels`,
      mean === null ? "" : `, IoU ${number(mean)} ${state.of === null ? "(mean of its classes)" : "of " + nameOf(state.of)}`);
    const ious = photo.ious;
    legend.replaceChildren(...photo.present.map((id) => el("li", {}, named(id), id in ious ? el("span", { class: "soft" }, " IoU " + number(ious[id])) : "")));
  }

  function setLayer(layer) {
    state.layer = layer;
    for (const label of radios) label.firstChild.checked = label.firstChild.value === layer;
    draw();
  }

  function draw() {
    const photo = photos[state.photo], pen = canvas.getContext("2d");
    canvas.setAttribute("aria-label", `${photo.id}, layer ${state.layer}; the arrow keys move the place, T, P, E and O change the layer`);
    pen.clearRect(0, 0, photo.width, photo.height);
    if (state.image) pen.drawImage(state.image, 0, 0, photo.width, photo.height);
    const cover = covered(photo, state.image ? state.opacity : 1);
    if (cover) pen.drawImage(cover, 0, 0);
    cross(pen, photo);
  }

  // The layer over the photo; painted anew only when something of it changes, not at every move of the pointer.
  function covered(photo, alpha) {
    const key = [state.photo, state.layer, alpha].join();
    if (last.key !== key) {
      const { truth, predicted } = photo.maps;
      const map = { truth, prediction: predicted, error: truth && predicted && errors(truth, predicted) }[state.layer];
      Object.assign(last, { key, cover: map ? painted(photo, map, state.layer === "error" ? errorColours(alpha) : classColours(alpha)) : null });
    }
    return last.cover;
  }

  function look() {
    const photo = photos[state.photo];
    const x = Math.floor(state.u * photo.width), y = Math.floor(state.v * photo.height);
    const { truth, predicted } = photo.maps, at = y * photo.width + x;
    place.replaceChildren(...sayPlace(photo, x, y, truth && truth[at], predicted && predicted[at]));
  }

  function sayPlace(photo, x, y, truth, predicted) {
    const out = [el("div", { class: "soft" }, `place ${x}, ${y}`)];
    if (predicted !== null) out.push(el("div", { class: "verdict", id: "place-class" }, named(predicted)));
    if (truth !== null) out.push(el("div", { id: "place-truth" }, "truth: ", named(truth),
      predicted === null || truth === VOID ? "" : truth === predicted ? " ✓ right" : " ✗ wrong"));
    if (photo.grid) {
      const u = (x + 0.5) / photo.width, v = (y + 0.5) / photo.height;
      const found = scoresAt(photo.grid, u, v);
      // the class comes from the label map, decided at full size; where a gate or the kept cells leave another first, it still stands first
      const mine = found.find(({ id }) => id === predicted);
      const ranked = mine ? [mine, ...found.filter((each) => each !== mine)] : found;
      const high = found[0].score, low = found.at(-1).score;
      if (mine && ranked.length > 1) out.push(el("div", { id: "place-runner-up" }, `score ${number(mine.score)}, runner-up `, named(ranked[1].id), ` ${number(ranked[1].score)}`));
      out.push(el("ol", { id: "place-scores" }, ...ranked.slice(0, 5).map(({ id, score }) => el("li", { class: UNSEEN.has(id) ? "unseen" : "" },
        named(id), el("span", { "aria-hidden": "true" }, el("span", { class: "bar", style: { width: clamp((100 * (score - low)) / (high - low || 1), 2, 100) + "%" } })), el("span", { class: "value" }, number(score))))));
      if (photo.near) out.push(el("div", { id: "place-words" }, el("span", { class: "soft" }, "nearest words: "), wordsAt(photo.near, u, v).join(", ")));
    }
    return out;
  }

  function move(u, v) {
    const photo = photos[state.photo];
    state.u = clamp(u, 0, 1 - 0.5 / photo.width);
    state.v = clamp(v, 0, 1 - 0.5 / photo.height);
    draw();
    look();
  }

  function cross(pen, photo) {
    const x = Math.floor(state.u * photo.width) + 0.5, y = Math.floor(state.v * photo.height) + 0.5;
    for (const [colour, thick] of [["#000", 3], ["#fff", 1]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick;
      pen.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        pen.moveTo(x + 3 * dx, y + 3 * dy);
        pen.lineTo(x + 11 * dx, y + 11 * dy);
      }
      pen.stroke();
    }
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  canvas.addEventListener("keydown", (event) => {
    const photo = photos[state.photo], step = event.shiftKey ? 1 : 8;
    arrows(event, (dx, dy) => move(state.u + (dx * step) / photo.width, state.v + (dy * step) / photo.height));
    const layer = { t: "truth", p: "prediction", e: "error", o: "photo" }[event.key.toLowerCase()];
    if (layer && layers.includes(layer) && !event.ctrlKey && !event.metaKey && !event.altKey) setLayer(layer);
    const kept = chosen(), turn = { "]": 1, "[": -1 }[event.key];
    if (turn && kept.length) show(kept[(kept.indexOf(state.photo) + turn + kept.length) % kept.length]);
  });
  const by = DATA.predictedBy;
  const how = by.anew ? `The model predicted these photos anew; calibration: ${by.calibration === "model" ? "the model's own" : by.calibration}` + (by.seen_bias === null ? "." : `, seen bias ${by.seen_bias}.`) : "";
  section("gallery", "Gallery",
    el("p", {}, "Move over the picture, or give it the focus and use the arrow keys (with Shift: by one pixel). T, P, E and O show truth, prediction, error and the photo alone; [ and ] turn to the next photo. ", how),
    el("div", { class: "controls" }, el("fieldset", {}, el("legend", {}, "Layer"), ...radios), el("label", {}, "opacity ", opacity),
      el("label", {}, "with class ", filter), el("label", {}, "order ", order), count),
    el("div", { class: "viewer" }, el("div", {}, caption, canvas, legend), place), strip);
  show(0);
  refill();
  redraws.push(draw);
  return {
    filterBy: (id) => { filter.value = photos.some((p) => p.present.includes(id)) ? id : ""; filter.dispatchEvent(new Event("change")); document.getElementById("gallery").scrollIntoView(); filter.focus({ preventScroll: true }); },
    open: (index, [u, v]) => { show(index, u, v); document.getElementById("gallery").scrollIntoView(); canvas.focus({ preventScroll: true }); },
  };
}

function present(photos) {
  return [...new Set(photos.flatMap((photo) => photo.present))].sort((a, b) => a - b);
}

function thumbnail(photo) {
  if (photo.picture) return el("img", { src: "data:image/jpeg;base64," + photo.picture, alt: "" });
  const canvas = el("canvas", { width: photo.width, height: photo.height, "aria-hidden": "true" });
  const { truth, predicted } = unpacked(photo).maps, map = predicted ?? truth;
  if (map) canvas.getContext("2d").drawImage(painted(photo, map, classColours(1)), 0, 0);
  return canvas;
}

// Red, green, blue and opacity of each value, 0 to 255. Black is VOC's background: it would hide the photo.
function classColours(alpha) {
  return DATA.colours.map((colour, id) => {
    const rgb = channels(colour);
    return id === VOID ? [0, 0, 0, 0] : [...rgb, 255 * (alpha < 1 && !rgb.some((value) => value) ? 0.35 * alpha : alpha)];
  });
}

const RIGHT = 0, WRONG = 1, UNKNOWN = 2;

function errorColours(alpha) {
  return [[0, 114, 178, 90 * alpha], [230, 97, 0, 255 * alpha], [128, 128, 128, 128 * alpha]];
}

function errors(truth, predicted) {
  return truth.map((id, i) => (id === VOID ? UNKNOWN : id === predicted[i] ? RIGHT : WRONG));
}

function painted(photo, map, colours) {
  const image = new ImageData(photo.width, photo.height);
  map.forEach((value, i) => image.data.set(colours[value], 4 * i));
  const canvas = el("canvas", { width: photo.width, height: photo.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// --- colours ---

function themes() {
  const button = document.getElementById("theme"), order = ["auto", "light", "dark"];
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    button.textContent = "◐ " + next;
    button.setAttribute("aria-label", `Colours: ${next === "auto" ? "as the system has them" : next}. Change`);
    redraws.forEach((draw) => draw());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((draw) => draw()));
}

themes();
drawRun();
let gallery = null; // the parts before it lead there
if (DATA.classes) drawClasses(DATA.gallery ? (id) => gallery.filterBy(id) : null);
if (DATA.curve) drawCurve();
if (DATA.confusion) drawConfusion();
if (DATA.history) drawHistory();
if (DATA.space) drawSpace(DATA.gallery ? (photo, place) => gallery.open(photo, place) : null);
if (DATA.gallery) gallery = drawGallery();
