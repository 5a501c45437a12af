// The page of a shard folder: what is stored, the figures, charts that filter, and the manifest's facts.

const { path, facts, images = [], verdict, shown, class_names: classNames, attribute_names: attributeNames } = data;
const NO_CLASS = "no class stored";
const state = { classes: new Set(), least: null, most: null, text: "", score: 0, boxes: true, order: "stored" };

/** A RoI is stored as [x0, y0, x1, y1, score, [class, probability, ...], attribute, probability]. */
const boxOf = (roi) => roi.slice(0, 4);
const scoreOf = (roi) => roi[4];
const classOf = (roi) => (roi[5].length ? roi[5][0] : null);
const nameOf = (id) => (id === null ? NO_CLASS : (classNames[id] ?? `class ${id}`));
const isWanted = (roi) => scoreOf(roi) >= state.score && (!state.classes.size || state.classes.has(classOf(roi)));

function attributeOf(roi) {
  return roi[6] === null || roi[6] === undefined ? null : (attributeNames?.[roi[6]] ?? `attribute ${roi[6]}`);
}

function labelOf(roi) {
  return [attributeOf(roi), nameOf(classOf(roi)), number(scoreOf(roi), 2)].filter(Boolean).join(" ");
}

// The head

function head() {
  const name = path.replace(/\/+$/, "").split("/").pop();
  return el(
    "header",
    null,
    el(
      "div",
      { class: "head" },
      el(
        "div",
        null,
        el("p", { class: "kicker" }, `Shard report · vlb ${data.version}`),
        el("h1", null, name),
        el("p", { class: "soft mono" }, path),
        verdictLine(),
      ),
      themeButton(),
    ),
    verdict && !verdict.sound ? findings() : null,
    facts ? el("dl", { class: "tiles" }, ...tiles()) : null,
  );
}

function verdictLine() {
  if (!verdict) {
    return el(
      "p",
      { class: "verdict" },
      "Not verified. With --verify, this page says whether every byte is as written.",
    );
  }
  const read = `${plural(verdict.files, "file")}, ${size(verdict.bytes)}`;
  return verdict.sound
    ? el("p", { class: "verdict good" }, `✓ Sound: ${read} read, everything as it was written`)
    : el("p", { class: "verdict bad" }, `✗ Damaged: ${plural(verdict.num_findings, "problem")} in ${read}`);
}

function findings() {
  const more = verdict.num_findings - verdict.findings.length;
  const lines = verdict.findings.map(({ file, image_id: id, problem }) =>
    el(
      "li",
      null,
      el("span", { class: "mono" }, file),
      id ? [", image ", el("span", { class: "mono" }, id)] : "",
      `: ${problem}`,
    ),
  );
  return el("ul", { class: "findings" }, lines, more ? el("li", { class: "soft" }, `and ${number(more)} more`) : null);
}

function tiles() {
  const norm = facts.sample.features.mean_norm;
  const space = facts.label_space,
    total = Math.max(facts.num_images, 1);
  const seen = facts.sample.classes.length;
  return [
    tile("Images", number(facts.num_images), plural(facts.num_shards, "shard") + `, ${facts.container.toUpperCase()}`),
    tile(
      "Captions",
      facts.num_captions === null ? "—" : number(facts.num_captions),
      facts.num_captions === null
        ? "not counted in a single file"
        : `${number(facts.num_captions / total, 1)} an image`,
    ),
    tile("RoIs", number(facts.num_rois), `${number(facts.num_rois / total, 1)} an image`),
    tile(
      "Classes",
      space ? number(seen) : "none",
      space ? `seen of ${number(space.num_classes)} in ${space.name}` : "masked RoIs cannot be trained on",
    ),
    tile(
      "Features",
      `${number(facts.feature_dim)}`,
      facts.feature_dtype + (norm === undefined ? "" : `, mean norm ${number(norm, 1)}`),
    ),
    tile(
      "On disk",
      size(facts.bytes),
      `${size(facts.bytes_an_image)} an image; 3.3 million: ` + size(facts.bytes_of_3_3_million_images),
    ),
    facts.masked_views ? tile("Masked views", number(facts.masked_views), "an image") : null,
  ];
}

// Charts

/** Return a chart of a histogram; chosen(low, high), where given, makes its bars buttons that filter. */
function chart(title, histogram, write, sum, chosen) {
  const box = el("div", { class: "chart" }, el("h3", null, title));
  if (!histogram.count) return fill(box, null, [el("p", { class: "sum" }, "nothing to count")]);
  const edges = histogram.bin_edges,
    top = Math.max(...histogram.bin_counts);
  const whole = Number.isInteger(edges[0]) && edges.every(Number.isInteger);
  const said = el("p", { class: "sum" }, sum);
  const bars = histogram.bin_counts.map((count, i) => {
    const low = edges[i],
      high = whole ? Math.min(edges[i + 1] - 1, histogram.max) : edges[i + 1];
    const text = `${low === high ? write(low) : `${write(low)} – ${write(high)}`}: ${number(count)}`;
    const on = {
      title: text,
      onpointerenter: () => (said.textContent = text),
      onpointerleave: () => (said.textContent = sum),
    };
    const bar = el("i", { "height%": (100 * count) / top });
    return chosen
      ? el(
          "button",
          {
            ...on,
            type: "button",
            "aria-label": `show ${text}`,
            "data-low": low,
            "data-high": high,
            onfocus: on.onpointerenter,
            onblur: on.onpointerleave,
            onclick: () => chosen(low, high),
          },
          bar,
        )
      : el("div", on, bar);
  });
  return fill(box, null, [
    said,
    el("div", { class: "bars", role: chosen ? "group" : "img", "aria-label": `${title}: ${sum}` }, bars),
    el(
      "div",
      { class: "ends" },
      el("span", null, write(edges[0])),
      el("span", null, write(whole ? histogram.max : edges[edges.length - 1])),
    ),
  ]);
}

const summary = (histogram, write) =>
  histogram.count
    ? `mean ${write(histogram.mean, 1)}, median ${write(histogram.median)}, ${write(histogram.min)} to ${write(histogram.max)}`
    : "";

function charts() {
  const { sample, rois_an_image: rois } = facts;
  const plain = (value, digits = 0) => number(value, digits),
    two = (value) => number(value, 2),
    side = (value) => percent(value);
  return el(
    "section",
    { "aria-labelledby": "shape" },
    el(
      "div",
      { class: "over" },
      el("h2", { id: "shape" }, "Distributions"),
      el(
        "p",
        null,
        sample.images < facts.num_images
          ? `RoIs an image are of all images, the rest of ${plural(sample.images, "image")} spread evenly over them`
          : "of all images",
      ),
    ),
    el(
      "div",
      { class: "charts" },
      chart("RoIs an image", rois, plain, summary(rois, plain), chooseCount),
      classChart(sample.classes),
      chart("Scores of RoIs", sample.scores, two, summary(sample.scores, two)),
      chart("Sizes of RoIs", sample.roi_sides, side, `side, of the image's: ${summary(sample.roi_sides, side)}`),
      chart("Words a caption", sample.caption_words, plain, summary(sample.caption_words, plain)),
    ),
  );
}

function classChart(classes) {
  const total = classes.reduce((sum, { rois }) => sum + rois, 0),
    top = classes.length ? classes[0].rois : 1;
  const rows = classes.slice(0, 200).map(({ id, name, rois }) =>
    el(
      "button",
      {
        class: "rank",
        type: "button",
        "data-class": id,
        "aria-pressed": "false",
        title: `${name}: ${plural(rois, "RoI")}`,
        onclick: () => toggleClass(id),
      },
      el("span", null, name),
      el("span", null, el("i", { "width%": (100 * rois) / top, "--colour": colourOf(id) })),
      el("span", { class: "soft num" }, percent(rois / total, 1)),
    ),
  );
  rows.forEach((row) => row.querySelector("i").style.setProperty("background", "var(--colour)"));
  return el(
    "div",
    { class: "chart" },
    el("h3", null, "Classes"),
    el(
      "p",
      { class: "sum" },
      classes.length
        ? `${plural(classes.length, "class", "classes")} of ${plural(total, "RoI")}; choose to filter`
        : facts.label_space
          ? "nothing to count"
          : "no class is stored",
    ),
    el("div", { class: "ranks", tabindex: rows.length > 5 ? 0 : null, role: "group", "aria-label": "Classes" }, rows),
  );
}

// Facts of the manifest

function factSection() {
  const names = {
    detector: "Detector",
    describer: "Describer",
    source: "Where it comes from",
    build: "Settings of the build",
    rejects: "Rejected inputs",
    left_out: "Left out of images",
  };
  const boxes = Object.entries(names)
    .filter(([key]) => facts[key] && Object.keys(facts[key]).length)
    .map(([key, title]) => el("div", null, el("h3", null, title), factList(facts[key])));
  const own = {
    path,
    container: facts.container,
    format_version: facts.format_version,
    content_hash: facts.content_hash,
    label_space: facts.label_space?.fingerprint,
    labels_a_roi: facts.label_topk,
  };
  boxes.unshift(el("div", null, el("h3", null, "Folder"), factList(own)));
  return el(
    "section",
    null,
    el(
      "details",
      { id: "facts" },
      el("summary", null, el("h2", null, "What the manifest says")),
      el("div", { class: "facts" }, boxes),
    ),
  );
}

function factList(mapping) {
  const rows = Object.entries(mapping).filter(([, value]) => value !== null && value !== undefined);
  return el(
    "dl",
    { tabindex: 0 },
    rows.flatMap(([name, value]) => [
      el("dt", null, name.replaceAll("_", " ")),
      el("dd", { class: "mono" }, factText(value)),
    ]),
  );
}

function factText(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 1).replace(/\s+/g, " ");
  return text.length > 600 ? `${text.slice(0, 600)} … (${number(text.length)} characters)` : text;
}
