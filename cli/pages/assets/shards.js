// The page of a shard folder: figures, charts that filter, the manifest's facts, and a gallery.

const { path, facts, images = [], verdict, shown, class_names: classNames, attribute_names: attributeNames } = data;
const NO_CLASS = "no class stored";
const state = { classes: new Set(), least: null, most: null, text: "", score: 0, boxes: true, order: "stored" };

/** A RoI is stored as [x0, y0, x1, y1, score, [class, probability, ...], attribute, probability]. */
const boxOf = (roi) => roi.slice(0, 4);
const scoreOf = (roi) => roi[4];
const classOf = (roi) => (roi[5].length ? roi[5][0] : null);
const nameOf = (id) => (id === null ? NO_CLASS : classNames[id] ?? `class ${id}`);
const isWanted = (roi) => scoreOf(roi) >= state.score && (!state.classes.size || state.classes.has(classOf(roi)));

function attributeOf(roi) {
  return roi[6] === null || roi[6] === undefined ? null : attributeNames?.[roi[6]] ?? `attribute ${roi[6]}`;
}

function labelOf(roi) {
  return [attributeOf(roi), nameOf(classOf(roi)), number(scoreOf(roi), 2)].filter(Boolean).join(" ");
}

// The head

function head() {
  const name = path.replace(/\/+$/, "").split("/").pop();
  return el("header", null,
    el("div", { class: "head" },
      el("div", null, el("p", { class: "kicker" }, `Shard report · vlb ${data.version}`), el("h1", null, name),
        el("p", { class: "soft mono" }, path), verdictLine()),
      themeButton()),
    verdict && !verdict.sound ? findings() : null,
    facts ? el("dl", { class: "tiles" }, ...tiles()) : null);
}

function verdictLine() {
  if (!verdict) {
    return el("p", { class: "verdict" }, "Not verified. With --verify, this page says whether every byte is as written.");
  }
  const read = `${plural(verdict.files, "file")}, ${size(verdict.bytes)}`;
  return verdict.sound
    ? el("p", { class: "verdict good" }, `✓ Sound: ${read} read, everything as it was written`)
    : el("p", { class: "verdict bad" }, `✗ Damaged: ${plural(verdict.num_findings, "problem")} in ${read}`);
}

function findings() {
  const more = verdict.num_findings - verdict.findings.length;
  const lines = verdict.findings.map(({ file, image_id: id, problem }) => el("li", null,
    el("span", { class: "mono" }, file), id ? [", image ", el("span", { class: "mono" }, id)] : "", `: ${problem}`));
  return el("ul", { class: "findings" }, lines, more ? el("li", { class: "soft" }, `and ${number(more)} more`) : null);
}

function tiles() {
  const space = facts.label_space, total = Math.max(facts.num_images, 1);
  const seen = facts.sample.classes.length;
  return [
    tile("Images", number(facts.num_images), plural(facts.num_shards, "shard") + `, ${facts.container.toUpperCase()}`),
    tile("Captions", facts.num_captions === null ? "—" : number(facts.num_captions),
      facts.num_captions === null ? "not counted in a single file" : `${number(facts.num_captions / total, 1)} an image`),
    tile("RoIs", number(facts.num_rois), `${number(facts.num_rois / total, 1)} an image`),
    tile("Classes", space ? number(seen) : "none", space ? `seen of ${number(space.num_classes)} in ${space.name}` :
      "masked RoIs cannot be trained on"),
    tile("Features", `${number(facts.feature_dim)}`, `${facts.feature_dtype}, mean norm ` +
      number(facts.sample.features.mean_norm ?? 0, 1)),
    tile("On disk", size(facts.bytes), `${size(facts.bytes_an_image)} an image; 3.3 million: ` +
      size(facts.bytes_of_3_3_million_images)),
    facts.masked_views ? tile("Masked views", number(facts.masked_views), "an image") : null,
  ];
}

// Charts

/** Return a chart of a histogram; chosen(low, high), where given, makes its bars buttons that filter. */
function chart(title, histogram, write, sum, chosen) {
  const box = el("div", { class: "chart" }, el("h3", null, title));
  if (!histogram.count) return fill(box, null, [el("p", { class: "sum" }, "nothing to count")]);
  const edges = histogram.bin_edges, top = Math.max(...histogram.bin_counts);
  const whole = Number.isInteger(edges[0]) && edges.every(Number.isInteger);
  const said = el("p", { class: "sum" }, sum);
  const bars = histogram.bin_counts.map((count, i) => {
    const low = edges[i], high = whole ? Math.min(edges[i + 1] - 1, histogram.max) : edges[i + 1];
    const text = `${low === high ? write(low) : `${write(low)} – ${write(high)}`}: ${number(count)}`;
    const on = { title: text, onpointerenter: () => (said.textContent = text), onpointerleave: () => (said.textContent = sum) };
    const bar = el("i", { "height%": (100 * count) / top });
    return chosen
      ? el("button", { ...on, type: "button", "aria-label": `show ${text}`, "data-low": low, "data-high": high,
        onfocus: on.onpointerenter, onblur: on.onpointerleave, onclick: () => chosen(low, high) }, bar)
      : el("div", on, bar);
  });
  return fill(box, null, [said,
    el("div", { class: "bars", role: chosen ? "group" : "img", "aria-label": `${title}: ${sum}` }, bars),
    el("div", { class: "ends" }, el("span", null, write(edges[0])),
      el("span", null, write(whole ? histogram.max : edges[edges.length - 1])))]);
}

const summary = (histogram, write) => (histogram.count
  ? `mean ${write(histogram.mean, 1)}, median ${write(histogram.median)}, ${write(histogram.min)} to ${write(histogram.max)}`
  : "");

function charts() {
  const { sample, rois_an_image: rois } = facts;
  const plain = (value, digits = 0) => number(value, digits), two = (value) => number(value, 2), side = (value) => percent(value);
  return el("section", { "aria-labelledby": "shape" },
    el("div", { class: "over" }, el("h2", { id: "shape" }, "Distributions"),
      el("p", null, sample.images < facts.num_images
        ? `RoIs an image are of all images, the rest of ${plural(sample.images, "image")} spread evenly over them`
        : "of all images")),
    el("div", { class: "charts" },
      chart("RoIs an image", rois, plain, summary(rois, plain), chooseCount),
      classChart(sample.classes),
      chart("Scores of RoIs", sample.scores, two, summary(sample.scores, two)),
      chart("Sizes of RoIs", sample.roi_sides, side, `side, of the image's: ${summary(sample.roi_sides, side)}`),
      chart("Words a caption", sample.caption_words, plain, summary(sample.caption_words, plain))));
}

function classChart(classes) {
  const total = classes.reduce((sum, { rois }) => sum + rois, 0), top = classes.length ? classes[0].rois : 1;
  const rows = classes.slice(0, 200).map(({ id, name, rois }) => el("button", {
    class: "rank", type: "button", "data-class": id, "aria-pressed": "false", title: `${name}: ${plural(rois, "RoI")}`,
    onclick: () => toggleClass(id),
  }, el("span", null, name), el("span", null, el("i", { "width%": (100 * rois) / top, "--colour": colourOf(id) })),
  el("span", { class: "soft num" }, percent(rois / total, 1))));
  rows.forEach((row) => row.querySelector("i").style.setProperty("background", "var(--colour)"));
  return el("div", { class: "chart" }, el("h3", null, "Classes"),
    el("p", { class: "sum" }, classes.length ? `${plural(classes.length, "class", "classes")} of ${plural(total, "RoI")}; choose to filter` : "no class is stored"),
    el("div", { class: "ranks", tabindex: rows.length > 5 ? 0 : null, role: "group", "aria-label": "Classes" }, rows));
}

// Facts of the manifest

function factSection() {
  const names = { detector: "Detector", describer: "Describer", source: "Where it comes from", build: "Settings of the build",
    rejects: "Rejected inputs", left_out: "Left out of images" };
  const boxes = Object.entries(names).filter(([key]) => facts[key] && Object.keys(facts[key]).length)
    .map(([key, title]) => el("div", null, el("h3", null, title), factList(facts[key])));
  const own = { path, container: facts.container, format_version: facts.format_version,
    content_hash: facts.content_hash, label_space: facts.label_space?.fingerprint, labels_a_roi: facts.label_topk };
  boxes.unshift(el("div", null, el("h3", null, "Folder"), factList(own)));
  return el("section", null, el("details", { id: "facts" },
    el("summary", null, el("h2", null, "What the manifest says")), el("div", { class: "facts" }, boxes)));
}

function factList(mapping) {
  const rows = Object.entries(mapping).filter(([, value]) => value !== null && value !== undefined);
  return el("dl", { tabindex: 0 }, rows.flatMap(([name, value]) =>
    [el("dt", null, name.replaceAll("_", " ")), el("dd", { class: "mono" }, factText(value))]));
}

function factText(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 1).replace(/\s+/g, " ");
  return text.length > 600 ? `${text.slice(0, 600)} … (${number(text.length)} characters)` : text;
}

// Gallery

function roisOf(image) {
  return image.rois.map((roi) => ({ box: boxOf(roi), colour: colourOf(classOf(roi)), label: labelOf(roi),
    state: isWanted(roi) ? "" : "out" }));
}

function rowOf(roi, ...more) {
  const attribute = attributeOf(roi);
  return el("div", { class: isWanted(roi) ? "row" : "row out" }, el("span", { class: "dot", "--colour": colourOf(classOf(roi)) }),
    el("span", { class: "name" }, attribute ? el("span", { class: "soft" }, `${attribute} `) : null, nameOf(classOf(roi))),
    el("span", { class: "gauge", "--share": `${100 * scoreOf(roi)}%`, "--colour": colourOf(classOf(roi)) }),
    el("span", { class: "score" }, number(scoreOf(roi), 2)), ...more);
}

const altOf = (image) => `${image.id}: ${image.captions[0]}`;
const shapeOf = (image) => ({ width: image.w, height: image.h });
const sourceOf = (i) => (pictures[i] ? `data:image/jpeg;base64,${pictures[i]}` : null);

function titleOf(image) {
  return [el("h3", { title: image.id }, image.id), el("span", { class: "num" }, `${image.w} × ${image.h}`),
    el("span", { class: "num" }, plural(image.rois.length, "RoI"))];
}

function captionsOf(image) {
  const isLong = image.captions.length > 2 || image.captions[0].length > 160;
  return el("ul", { class: "captions", tabindex: isLong ? 0 : null, "aria-label": "Captions" },
    image.captions.map((caption) => el("li", { dir: "auto" }, caption)));
}

function drawCard(i) {
  const image = images[i];
  const open = () => openLarge(i);
  const { picture, rows } = joined(shapeOf(image), sourceOf(i), altOf(image), roisOf(image),
    image.rois.map((roi) => rowOf(roi)), `RoIs of ${image.id}`, open);
  picture.addEventListener("dblclick", open);
  picture.classList.toggle("bare", !state.boxes);
  return [el("div", { class: "mat" }, picture),
    el("div", { class: "side" },
      el("div", { class: "title" }, ...titleOf(image),
        el("button", { class: "open", type: "button", "aria-label": `Open ${image.id} large`, onclick: open }, "Enlarge")),
      captionsOf(image), rows)];
}

function drawLarge(i) {
  const image = images[i];
  const rows = image.rois.map((roi) => rowOf(roi, el("span", { class: "more" }, detailOf(roi, image))));
  const { picture, rows: list, setState } = joined(shapeOf(image), sourceOf(i), altOf(image), roisOf(image), rows,
    `RoIs of ${image.id}`);
  const show = (view) => {
    const hidden = new Set(view === null ? [] : image.views[view]);
    image.rois.forEach((roi, r) => setState(r, hidden.has(r) ? "covered" : isWanted(roi) ? "" : "out"));
    views.forEach((button, at) => button.setAttribute("aria-pressed", String(at === (view === null ? 0 : view + 1))));
  };
  const views = image.views.length
    ? [null, ...image.views.keys()].map((view) => el("button", { class: "quiet", type: "button", onclick: () => show(view) },
      view === null ? "As it is" : `Masked view ${view + 1} (${image.views[view].length})`))
    : [];
  show(null);
  const bar = views.length
    ? el("div", { class: "views", role: "group", "aria-label": "Views: hatched RoIs had their pixels zeroed" }, views) : null;
  return { picture, side: [el("div", { class: "title" }, ...titleOf(image)), captionsOf(image), bar, list].filter(Boolean) };
}

function detailOf(roi, image) {
  const [x0, y0, x1, y1] = boxOf(roi), [, , , , , pairs, attribute, chance] = roi;
  const classes = [];
  for (let at = 0; at < pairs.length; at += 2) classes.push(`${nameOf(pairs[at])} ${number(pairs[at + 1], 2)}`);
  const share = ((x1 - x0) * (y1 - y0)) / (image.w * image.h);
  const parts = [classes.length > 1 ? classes.join(", ") : "", `${number(x1 - x0)} × ${number(y1 - y0)} px at ${number(x0)}, ${number(y0)}; ` +
    `${percent(share, 1)} of the image`];
  if (attribute !== null && attribute !== undefined) parts.splice(1, 0, `${attributeOf(roi)} ${number(chance, 2)}`);
  return parts.filter(Boolean).join(" · ");
}

// Filters

function passes(image) {
  const count = image.rois.length, found = new Set(image.rois.filter((roi) => scoreOf(roi) >= state.score).map(classOf));
  return (state.least === null || count >= state.least) && (state.most === null || count <= state.most) &&
    [...state.classes].every((id) => found.has(id)) &&
    (!state.text || image.captions.some((text) => text.toLowerCase().includes(state.text)) || image.id.toLowerCase().includes(state.text));
}

let visible = images.map((_, i) => i);

function apply() {
  visible = images.map((_, i) => i).filter((i) => passes(images[i]));
  const most = (i) => images[i].rois.length;
  if (state.order === "most") visible.sort((a, b) => most(b) - most(a));
  if (state.order === "fewest") visible.sort((a, b) => most(a) - most(b));
  const among = new Set(visible);
  cards.forEach((card, i) => { card.hidden = !among.has(i); });
  grid.append(...visible.map((i) => cards[i])); // in order for the keyboard too
  redraw();
  result.textContent = visible.length === images.length
    ? plural(images.length, "image") : `${number(visible.length)} of ${plural(images.length, "image")}`;
  nothing.hidden = visible.length > 0;
  const ids = [...state.classes];
  chips.replaceChildren(...ids.map((id) => el("button", { class: "chip", type: "button", "aria-label": `Without the class ${nameOf(id)}`,
    onclick: () => toggleClass(id) }, el("span", { class: "dot", "--colour": colourOf(id) }), nameOf(id), " ×")));
  document.querySelectorAll(".rank").forEach((row) => {
    const on = state.classes.has(Number(row.dataset.class));
    row.classList.toggle("on", on);
    row.setAttribute("aria-pressed", String(on));
  });
  document.querySelectorAll(".bars button").forEach((bar) => bar.classList.toggle("on",
    state.least === Number(bar.dataset.low) && state.most === Number(bar.dataset.high)));
  least.value = state.least ?? "";
  most_.value = state.most ?? "";
}

function toggleClass(id) {
  if (!state.classes.delete(id)) state.classes.add(id);
  apply();
}

function chooseCount(low, high) {
  const same = state.least === low && state.most === high;
  [state.least, state.most] = same ? [null, null] : [low, high];
  apply();
}

const usedClasses = [...new Set(images.flatMap((image) => image.rois.map(classOf)))].filter((id) => id !== null)
  .sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
const idByName = new Map(usedClasses.map((id) => [nameOf(id).toLowerCase(), id]));
const cards = images.map((_, i) => el("article", { class: "card", "data-number": i, "aria-label": `Image ${images[i].id}` }));
const grid = el("div", { class: "cards" }, cards);
const chips = el("span", { class: "chips" });
const result = el("span", { class: "result", role: "status" });
const nothing = el("p", { class: "nothing", hidden: true }, "No image has all of this. Take a filter away.");
const whole = (input) => (input.value === "" ? null : Number(input.value));
const counted = (name) => el("input", { type: "number", min: 0, "aria-label": name, oninput: () => {
  [state.least, state.most] = [whole(least), whole(most_)];
  apply();
} });
const least = counted("Fewest RoIs"), most_ = counted("Most RoIs");

function tools() {
  const classBox = el("input", { type: "search", list: "classes", id: "class", placeholder: "a class …", "aria-label": "Only images with this class",
    oninput: (event) => {
      const id = idByName.get(event.target.value.trim().toLowerCase());
      if (id === undefined) return;
      state.classes.add(id);
      event.target.value = "";
      apply();
    } });
  const said = el("output", { class: "num" }, "0.00");
  const score = el("input", { type: "range", id: "score", min: 0, max: 1, step: 0.05, value: 0, oninput: (event) => {
    state.score = Number(event.target.value);
    said.textContent = number(state.score, 2);
    apply();
  } });
  const order = el("select", { id: "order", "aria-label": "Order", onchange: (event) => { state.order = event.target.value; apply(); } },
    [["stored", "as stored"], ["most", "most RoIs first"], ["fewest", "fewest RoIs first"]].map(([value, text]) => el("option", { value }, text)));
  return el("div", { class: "tools", role: "search", "aria-label": "Filters" },
    el("input", { type: "search", id: "text", placeholder: "words of a caption …", "aria-label": "Only images whose caption or id has these words",
      oninput: (event) => { state.text = event.target.value.trim().toLowerCase(); apply(); } }),
    classBox, el("datalist", { id: "classes" }, usedClasses.map((id) => el("option", { value: nameOf(id) }))),
    el("label", null, "RoIs", least, "to", most_),
    el("label", null, "score from", score, said),
    el("label", null, el("input", { type: "checkbox", id: "boxes", checked: true, onchange: (event) => { state.boxes = event.target.checked; redraw(); } }), "boxes"),
    order, chips, result);
}

function gallery() {
  const how = shown.images === shown.of ? "all images" : `${number(shown.images)} of ${plural(shown.of, "image")}` +
    (shown.images < shown.sound ? ", spread evenly (--html-images)" : "") + (shown.sound < shown.of ? ", those in damaged files left out" : "");
  const seen = shown.pictures === shown.images ? shown.from : `${shown.from}; ${number(shown.images - shown.pictures)} have none`;
  return el("section", { id: "gallery", tabindex: -1, "aria-labelledby": "pictures-title" },
    el("div", { class: "over" }, el("h2", { id: "pictures-title" }, "Images"), el("p", null, `${how} · pictures: ${seen}`)),
    tools(), grid, nothing);
}

document.getElementById("page").append(el("main", null, head(), ...(facts ? [charts(), factSection(), gallery()] : [])),
  el("footer", null, `Made by vlb ${data.version} inspect-shard. Everything is in this file; it asks no network for anything. ` +
    "Point at a row or a box; arrow keys move, Enter opens the image, ← and → leaf."));
const openLarge = largeView(() => visible, drawLarge);
const redraw = lazily(cards, drawCard);
if (facts) apply();
