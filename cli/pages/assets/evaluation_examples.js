// The examples of the page of an evaluation: cards, the large view, and which are shown; after evaluation_figures.js.

// Marks before which people write no space, though they are pieces of their own.
const CLOSING = /^[.,;:!?)\]%]/;

function spaced([text, begins], place) {
  return (begins && place && !CLOSING.test(text) ? " " : "") + text;
}

function caption(example) {
  const words = new Map(example.words.map((word, i) => [word.place, [word, i]]));
  const marks = [];
  const parts = example.pieces.map(([text, begins], place) => {
    if (!words.has(place)) return spaced([text, begins], place);
    const [word, i] = words.get(place);
    const kind = word.is_right ? (word.is_other_right ? "both" : "seen") : "wrong";
    const mark = el("mark", { class: kind, title: `stood there: ${word.shown}; guessed: ${word.guesses[0][0]}` }, text);
    marks[i] = mark;
    return [spaced(["", begins && !CLOSING.test(text)], place), mark];
  });
  return { node: el("p", { class: "asked", dir: "auto" }, parts.flat()), marks };
}

const share = (value) => el("span", { class: "score" }, number(value, 2));

function guess([name, probability], right, width = "") {
  return el(
    "span",
    { class: `guess ${right ? "hit" : "miss"} ${width}` },
    el("span", { class: "unseen" }, right ? "right: " : "wrong: "),
    el("span", { class: "text" }, name),
    share(probability),
  );
}

function wordRow(word, more) {
  return el(
    "div",
    { class: "row trio" },
    el("span", { class: "name" }, word.truth),
    guess(word.guesses[0], word.is_right),
    word.other_guesses.length ? guess(word.other_guesses[0], word.is_other_right) : el("span", { class: "soft" }, "—"),
    ...more,
  );
}

function roiRow(masked, colour, more) {
  return el(
    "div",
    { class: "row trio" },
    el("span", { class: "name" }, el("span", { class: "dot", "--colour": colour }), " ", masked.truth[0][0]),
    guess(masked.guesses[0], masked.is_right, "wide"),
    ...more,
  );
}

function listed(pairs) {
  return pairs.map(([name, probability]) => `${name} ${number(probability, 2)}`).join(", ");
}

function wordDetail(word) {
  return [
    el("span", { class: "more" }, `with its image: ${listed(word.guesses)} · truth ${number(word.probability, 3)}`),
    word.other_guesses.length
      ? el(
          "span",
          { class: "more" },
          `with another: ${listed(word.other_guesses)} · truth ${number(word.other_probability, 3)}`,
        )
      : null,
    el("span", { class: "more" }, `the model saw “${word.shown}” there`),
  ].filter(Boolean);
}

/** Return picture, rows and caption of an example, joined: pointing at a row lights its word or its RoI. */
function parts(example, detailed, chosen) {
  const masked = new Map(example.masked.map((roi, i) => [roi.roi, i]));
  const hidden = new Set(example.hidden);
  const rois = example.rois.map(([x0, y0, x1, y1, id], r) => {
    const asked = masked.has(r) ? example.masked[masked.get(r)] : null;
    const label = asked
      ? `guessed: ${asked.guesses[0][0]} ${number(asked.guesses[0][1], 2)}`
      : nameOf(id) + (hidden.has(r) ? " (hidden, not asked)" : "");
    const stays = asked ? `${asked.is_right ? "✓" : "✗"} ${asked.guesses[0][0]}` : null;
    return { box: [x0, y0, x1, y1], colour: colourOf(id), label, stays, state: hidden.has(r) ? "covered" : "" };
  });
  const { node: text, marks } = caption(example);
  const rows = [
    ...example.words.map((word) => wordRow(word, detailed ? wordDetail(word) : [])),
    ...example.masked.map((roi) =>
      roiRow(
        roi,
        rois[roi.roi].colour,
        detailed
          ? [el("span", { class: "more" }, `guesses: ${listed(roi.guesses)} · stored: ${listed(roi.truth)}`)]
          : [],
      ),
    ),
  ];
  const numWords = example.words.length;
  const light = (row, roi) => {
    marks.forEach((mark, i) => mark.classList.toggle("lit", i === row));
    picture.light(roi);
    list.light(row);
  };
  const picture = makePicture(
    { width: example.w, height: example.h },
    sourceOf(example.picture),
    `${example.id}: ${example.pieces.map(([t]) => t).join(" ")}`,
    rois,
    (roi) => {
      const row = masked.has(roi) ? numWords + masked.get(roi) : null;
      light(row, roi);
      if (row !== null) list.show(row);
    },
  );
  const list = makeRows(
    rows,
    `Masked words and RoIs of ${example.name}`,
    (row) => light(row, row !== null && row >= numWords ? example.masked[row - numWords].roi : null),
    chosen,
  );
  marks.forEach((mark, i) =>
    mark.addEventListener("pointerenter", () => {
      light(i, null);
      list.show(i);
    }),
  );
  marks.forEach((mark) => mark.addEventListener("pointerleave", () => light(null, null)));
  return { picture: picture.node, rows: list.node, text };
}

function columns(example) {
  if (!example.words.length && !example.masked.length) {
    return el("p", { class: "row soft" }, "nothing was masked here");
  }
  return el(
    "div",
    { class: "row trio columns", "aria-hidden": "true" },
    el("span", null, "masked"),
    el("span", null, "its image"),
    el("span", null, "another image"),
  );
}

function titleOf(example) {
  return [
    el("h3", { title: example.name }, example.id),
    el("span", { class: "num" }, plural(example.words.length, "word")),
    el("span", { class: "num" }, plural(example.masked.length, "RoI")),
  ];
}

function drawCard(i) {
  const example = examples[i];
  const open = () => openLarge(i);
  const { picture, rows, text } = parts(example, false, open);
  return cardOf(picture, titleOf(example), example.name, open, [text, columns(example), rows]);
}

function drawLarge(i) {
  const example = examples[i];
  const { picture, rows, text } = parts(example, true);
  const other = example.other;
  const source = other ? sourceOf(other.picture) : null;
  const small = other
    ? el(
        "div",
        { class: "other" },
        source ? el("img", { src: source, alt: `The other image, ${other.id}` }) : null,
        el("span", { class: "soft" }, `The other image: ${other.id}`),
      )
    : null;
  return {
    picture,
    side: [el("div", { class: "title" }, ...titleOf(example)), text, small, columns(example), rows].filter(Boolean),
  };
}

// Choosing

const KINDS = {
  all: ["all", () => true],
  seen: ["read off the picture", (example) => example.words.some((word) => word.is_right && !word.is_other_right)],
  wrong: ["a word wrong", (example) => example.words.some((word) => !word.is_right)],
  roi: ["a RoI right", (example) => example.masked.some((roi) => roi.is_right)],
  noroi: ["a RoI wrong", (example) => example.masked.some((roi) => !roi.is_right)],
};
const ORDERS = { stored: "as stored", most: "most gained by the image first", least: "least gained first" };
let visible = examples.map((_, i) => i);
const cards = makeCards(examples.map((example) => `Caption ${example.name}`));
const grid = el("div", { class: "cards" }, cards);
const result = el("span", { class: "result", role: "status" });
const nothing = el("p", { class: "nothing", hidden: true }, "No example is like this.");

function apply() {
  const said = (example) => example.pieces.map(spaced).join("").toLowerCase();
  visible = examples
    .map((_, i) => i)
    .filter((i) => KINDS[state.kind][1](examples[i]) && said(examples[i]).includes(state.text));
  if (state.order !== "stored")
    visible.sort((a, b) => (gainOf(examples[b]) - gainOf(examples[a])) * (state.order === "most" ? 1 : -1));
  showCards(cards, grid, visible, result, "caption");
  nothing.hidden = visible.length > 0;
}

const choices = (id, name, options, changed) =>
  el(
    "select",
    {
      id,
      "aria-label": name,
      onchange: (event) => {
        changed(event.target.value);
        apply();
      },
    },
    options.map(([value, text]) => el("option", { value }, text)),
  );

function gallery() {
  const all = examples.length === report.caption_examples;
  return el(
    "section",
    { id: "gallery", tabindex: -1, "aria-labelledby": "examples-title" },
    el(
      "div",
      { class: "over" },
      el("h2", { id: "examples-title" }, "Examples"),
      el(
        "p",
        null,
        all
          ? "all captions"
          : `${number(examples.length)} of ${plural(report.caption_examples, "caption")}, spread evenly`,
      ),
      el(
        "p",
        { class: "legend" },
        el("mark", { class: "seen" }, "right"),
        " only with its image ",
        el("mark", { class: "both" }, "right"),
        " with any image ",
        el("mark", { class: "wrong" }, "wrong"),
        " · hatched: RoIs that the model did not see; point at one to look under it",
      ),
    ),
    el(
      "div",
      { class: "tools", role: "search", "aria-label": "Filters" },
      choices(
        "kind",
        "Which examples",
        Object.entries(KINDS).map(([value, [text]]) => [value, text]),
        (value) => {
          state.kind = value;
        },
      ),
      choices("order", "Order", Object.entries(ORDERS), (value) => {
        state.order = value;
      }),
      el("input", {
        type: "search",
        id: "text",
        placeholder: "words of a caption …",
        "aria-label": "Only captions with these words",
        oninput: (event) => {
          state.text = event.target.value.trim().toLowerCase();
          apply();
        },
      }),
      result,
    ),
    grid,
    nothing,
  );
}

document
  .getElementById("page")
  .append(
    el("main", null, ...[head(), namedWords(), gallery()].filter(Boolean)),
    footer("evaluate", "Point at a row, a word or a box; arrow keys move, Enter opens the example, ← and → leaf."),
  );
const openLarge = largeView(() => visible, drawLarge);
lazily(cards, drawCard);
apply();
