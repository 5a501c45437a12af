"use strict";
// What both pages share. Promise: text from the data becomes text nodes and attributes only, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const SVG = "http://www.w3.org/2000/svg";
// Cards this far outside the window are drawn ahead; those farther away are emptied again.
const AHEAD = "1200px 0px";
// So long a frame may draw cards: a quarter to a half of what a smooth one has.
const DRAWING_MS = 6;

/** Return an element; properties that begin with "on" are listeners, "--x" custom properties, others attributes. */
function el(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--") || name === "width%" || name === "height%") {
      node.style.setProperty(name.replace("%", ""), name.endsWith("%") ? `${value}%` : value);
    } else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Return bytes as people write them, in powers of ten. */
function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (Math.abs(bytes) >= 1000 && at < units.length - 1) {
    bytes /= 1000;
    at += 1;
  }
  return `${number(bytes, at ? 1 : 0)} ${units[at]}`;
}

function percent(share, digits = 0) {
  return `${number(100 * share, digits)}\u202f%`; // a narrow space at which no line is broken
}

function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** Return the colour of a class: hues a golden angle apart, so that neighbours in the list differ. */
function colourOf(id) {
  return id === null ? "oklch(0.8 0.02 250)" : `oklch(0.76 0.17 ${((id * 137.508 + 25) % 360).toFixed(1)})`;
}

function tile(name, value, note) {
  const more = note ? [el("div", { class: "note" }, note)] : [];
  return el("div", { class: "tile" }, el("dt", null, name), el("dd", null, value, ...more));
}

/** Return the last lines of a page: what made it, and what the reader should know. */
function footer(command, hint) {
  const bytes = size(Number(document.documentElement.dataset.bytes));
  const made = `Made by vlb ${data.version} ${command}. Everything is in this file, ${bytes}; it asks no network for anything. `;
  return el("footer", null, made + hint);
}

function themeButton() {
  const kinds = ["light dark", "light", "dark"];
  const names = ["◐ As the system", "○ Light", "● Dark"];
  let at = 0;
  return el(
    "button",
    {
      class: "quiet",
      type: "button",
      id: "theme",
      title: "Change colours: as the system, light, dark",
      onclick: (event) => {
        at = (at + 1) % kinds.length;
        document.documentElement.style.colorScheme = kinds[at];
        event.currentTarget.textContent = names[at];
      },
    },
    names[0],
  );
}

/**
 * Return a picture with its RoIs and what changes it.
 * shape: {width, height}; source: a data URI or null; rois: [{box, colour, label, state, stays}], state a class name or
 * "", stays what is written at the RoI all the time, if anything.
 * light(i): point at RoI i, or at none with null. found(i): called where the pointer stands on RoI i, or on none.
 */
function makePicture(shape, source, alt, rois, found = () => {}) {
  const marks = rois.map(({ box: [x0, y0, x1, y1], colour, state }) => {
    const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: Math.max(shape.width, shape.height) / 250 };
    const lines = [svg("rect", { ...place, class: "under" }), svg("rect", { ...place, class: "line" })];
    return svg("g", { class: `roi ${state || ""}`, "--colour": colour }, ...lines);
  });
  const view = `0 0 ${shape.width} ${shape.height}`;
  const layer = svg("svg", { viewBox: view, preserveAspectRatio: "none", "aria-hidden": "true" }, ...marks);
  const node = el("div", { class: source ? "picture" : "picture empty", "--ratio": shape.width / shape.height });
  if (source) {
    const image = el("img", { src: source, alt, decoding: "async", draggable: "false" });
    image.addEventListener("error", () => {
      node.classList.add("empty");
      image.remove();
    });
    node.append(image);
  } else {
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", `${alt} (no picture stored)`);
  }
  node.append(layer);
  const tag = el("div", { class: "tag", hidden: true });
  node.append(
    ...rois
      .filter((roi) => roi.stays)
      .map((roi) => {
        const staying = el("div", { class: "tag stay" });
        placeTag(staying, { ...roi, label: roi.stays }, shape);
        return staying;
      }),
    tag,
  );
  const light = (lit) => {
    marks.forEach((mark, i) => mark.classList.toggle("lit", i === lit));
    node.classList.toggle("dim", lit !== null);
    tag.hidden = lit === null;
    if (lit === null) return;
    layer.append(marks[lit]); // what is drawn last lies on top
    placeTag(tag, rois[lit], shape);
  };
  node.addEventListener("pointermove", (event) => found(smallestAt(event, node, shape, rois)));
  node.addEventListener("pointerleave", () => found(null));
  const setState = (i, state) => marks[i].setAttribute("class", `roi ${state}`);
  return { node, light, setState };
}

function placeTag(tag, roi, shape) {
  const [x0, y0, x1, y1] = roi.box;
  tag.textContent = roi.label;
  tag.style.setProperty("--colour", roi.colour);
  const high = y0 / shape.height > 0.13;
  tag.style.top = high ? "auto" : `${(100 * y1) / shape.height > 87 ? 1 : (100 * y1) / shape.height + 1}%`;
  tag.style.bottom = high ? `${100 - (100 * y0) / shape.height + 1}%` : "auto";
  const right = (x0 + x1) / 2 / shape.width > 0.5;
  tag.style.left = right ? "auto" : `${Math.max(0, (100 * x0) / shape.width)}%`;
  tag.style.right = right ? `${Math.max(0, 100 - (100 * x1) / shape.width)}%` : "auto";
}

/** Return the smallest RoI under the pointer, so that one inside another can be reached; null where there is none. */
function smallestAt(event, node, shape, rois) {
  const edge = node.getBoundingClientRect();
  const x = ((event.clientX - edge.left) / edge.width) * shape.width;
  const y = ((event.clientY - edge.top) / edge.height) * shape.height;
  let best = null,
    least = Infinity;
  rois.forEach(({ box: [x0, y0, x1, y1], state }, i) => {
    const area = (x1 - x0) * (y1 - y0);
    if (state !== "out" && x >= x0 && x <= x1 && y >= y0 && y <= y1 && area < least) [best, least] = [i, area];
  });
  return best;
}

/**
 * Return a list of rows of which one is pointed at, by pointer or arrow keys: {node, light}.
 * pointed(i): called with the row that is pointed at, or null. chosen: called at Enter or a double click.
 */
function makeRows(rows, name, pointed, chosen = () => {}) {
  const node = el(
    "div",
    { class: "rows", role: "listbox", tabindex: rows.length ? 0 : null, "aria-label": name },
    rows,
  );
  let lit = null;
  rows.forEach((row, i) => {
    row.setAttribute("role", "option");
    row.id = `row-${(makeRows.count = (makeRows.count || 0) + 1)}`;
    row.addEventListener("pointerenter", () => pointed(i));
  });
  const light = (i) => {
    if (lit !== null) rows[lit].classList.remove("lit");
    if (lit !== null) rows[lit].setAttribute("aria-selected", "false");
    lit = i;
    if (lit === null) return node.removeAttribute("aria-activedescendant");
    rows[lit].classList.add("lit");
    rows[lit].setAttribute("aria-selected", "true");
    node.setAttribute("aria-activedescendant", rows[lit].id);
    return null;
  };
  const show = (i) => {
    const top = rows[i].offsetTop - node.offsetTop;
    if (top < node.scrollTop) node.scrollTop = top - 4;
    else if (top + rows[i].offsetHeight > node.scrollTop + node.clientHeight) {
      node.scrollTop = top + rows[i].offsetHeight - node.clientHeight + 4;
    }
  };
  node.addEventListener("pointerleave", () => pointed(null));
  node.addEventListener("blur", () => pointed(null));
  node.addEventListener("dblclick", () => chosen());
  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter") return chosen();
    const steps = { ArrowDown: 1, ArrowUp: -1, Home: -rows.length, End: rows.length };
    if (!(event.key in steps)) return null;
    event.preventDefault();
    event.stopPropagation();
    const from = lit === null ? (steps[event.key] > 0 ? -1 : rows.length) : lit;
    pointed(Math.min(rows.length - 1, Math.max(0, from + steps[event.key])));
    return show(lit);
  });
  return { node, light, show };
}

/** Join a picture and its rows: pointing at either lights both. Return both nodes and what lights RoI i. */
function joined(shape, source, alt, rois, rows, name, chosen) {
  const light = (i, scrolls) => {
    picture.light(i);
    list.light(i);
    if (scrolls && i !== null) list.show(i);
  };
  const picture = makePicture(shape, source, alt, rois, (i) => light(i, true));
  const list = makeRows(rows, name, (i) => light(i, false), chosen);
  return { picture: picture.node, rows: list.node, setState: picture.setState, light };
}

/** Return the data URI of a stored picture, null where there is none. */
const sourceOf = (place) => (pictures[place] ? `data:image/jpeg;base64,${pictures[place]}` : null);

/** Return empty cards, one for each name, in order, for `lazily`. */
function makeCards(names) {
  return names.map((name, i) => el("article", { class: "card", "data-number": i, "aria-label": name }));
}

/** Return what a card holds: the picture and, beside it, the title with a button that opens `name` large, and `below`. */
function cardOf(picture, title, name, open, below) {
  picture.addEventListener("dblclick", open);
  const label = `Open ${name} large`;
  const button = el("button", { class: "open", type: "button", "aria-label": label, onclick: open }, "Enlarge");
  return [
    el("div", { class: "mat" }, picture),
    el("div", { class: "side" }, el("div", { class: "title" }, ...title, button), ...below),
  ];
}

/** Show the cards numbered `visible`, in that order, for the keyboard too; say in `result` how many of `what` these are. */
function showCards(cards, grid, visible, result, what) {
  const among = new Set(visible);
  cards.forEach((card, i) => {
    card.hidden = !among.has(i);
  });
  grid.append(...visible.map((i) => cards[i]));
  const all = plural(cards.length, what);
  result.textContent = visible.length === cards.length ? all : `${number(visible.length)} of ${all}`;
}

/** Draw cards as they come near the window and empty them as they go: thousands stay as quick as a few. */
function lazily(cards, draw) {
  const waiting = new Set();
  let isAtWork = false;
  const work = () => {
    const end = performance.now() + DRAWING_MS;
    for (const card of waiting) {
      if (performance.now() > end) break;
      waiting.delete(card);
      card.replaceChildren(...draw(Number(card.dataset.number)));
    }
    isAtWork = waiting.size > 0;
    if (isAtWork) requestAnimationFrame(work);
  };
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target: card, isIntersecting } of entries) {
        if (!isIntersecting) waiting.delete(card); // it went by before its turn came
        if (isIntersecting && !card.firstChild) waiting.add(card);
        else if (!isIntersecting && card.firstChild && !card.contains(document.activeElement)) card.replaceChildren();
      }
      if (waiting.size && !isAtWork) work();
    },
    { rootMargin: AHEAD },
  );
  cards.forEach((card) => seen.observe(card));
  return () => {
    cards.filter((card) => card.firstChild).forEach((card) => waiting.add(card));
    if (waiting.size && !isAtWork) work();
  };
}

/** Return the large view, a dialog whose contents `draw(i)` gives; `order()` gives the numbers to leaf through. */
function largeView(order, draw) {
  let at = 0;
  const dialog = el("dialog", { "aria-label": "One image, large" });
  const move = (step) => {
    const among = order();
    const next = among[among.indexOf(at) + step];
    if (next !== undefined) open(next);
  };
  const moves = (number) => {
    const among = order(),
      place = among.indexOf(number);
    const button = (text, off, action, last) =>
      el("button", { class: `quiet ${last}`, type: "button", disabled: off, onclick: action }, text);
    return el(
      "div",
      { class: "moves" },
      button("← Previous", place <= 0, () => move(-1), ""),
      button("Next →", place < 0 || place >= among.length - 1, () => move(1), ""),
      button("Close", false, () => dialog.close(), "last"),
    );
  };
  const open = (number) => {
    at = number;
    const { picture, side } = draw(number);
    dialog.replaceChildren(
      el(
        "div",
        { class: "large" },
        el("div", { class: "mat" }, picture),
        el("div", { class: "side" }, ...side, moves(number)),
      ),
    );
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
  return open;
}

// The hatching of RoIs that the model or the describer did not see.
document.body.append(
  svg(
    "svg",
    { width: 0, height: 0, "aria-hidden": "true", class: "unseen" },
    svg(
      "defs",
      null,
      svg(
        "pattern",
        { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 2, height: 8, fill: "rgb(255 255 255 / 40%)" }),
      ),
    ),
  ),
);
