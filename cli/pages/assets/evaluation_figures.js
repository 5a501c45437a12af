// The page of an evaluation: the figures on top, and words that were named.

const { report, examples, class_names: classNames } = data;
const MINUS = "−";
const state = { kind: "all", text: "", order: "stored" };

const gainOf = (example) =>
  example.words.reduce((sum, word) => sum + word.probability - (word.other_probability ?? word.probability), 0);
const nameOf = (id) => (id === null ? "no class stored" : classNames[id]);

// The head

function head() {
  const path = report.checkpoint.split("/");
  const run = path.at(-2) === "checkpoints" ? path.at(-3) : path.at(-1);
  return el(
    "header",
    null,
    el(
      "div",
      { class: "head" },
      el(
        "div",
        null,
        el("p", { class: "kicker" }, `Evaluation · vlb ${data.version}`),
        el("h1", null, `${run}, step ${number(report.step)}`),
        el("p", { class: "soft mono" }, report.checkpoint),
        el(
          "p",
          { class: "lead" },
          `Measured on ${plural(report.caption_examples, "caption")} and ` +
            `${plural(report.text_examples, "text")}. Another image: the same caption and the same masked words, with the ` +
            "RoIs of another example's image; what is lost then comes from looking.",
        ),
      ),
      themeButton(),
    ),
    el("dl", { class: "tiles" }, ...tiles()),
  );
}

function taskTile(name, result, note) {
  if (!result.count) return tile(name, "—", "nothing was asked");
  return tile(
    name,
    percent(result.accuracy, 1),
    `${note ? `${note}; ` : ""}loss ${number(result.loss, 3)}, ${number(result.count)} asked`,
  );
}

function tiles() {
  const gain = report.visual_gain;
  const baseline =
    report.roi_baseline === null
      ? ""
      : `always “${report.roi_baseline_class ?? "the most frequent"}”: ${percent(report.roi_baseline, 1)}`;
  return [
    taskTile("Masked words with the image", report.words_with_image),
    taskTile("… with another image", report.words_with_other_image),
    gain === null
      ? tile("Visual gain", "—", "needs two images")
      : tile(
          "Visual gain",
          `${gain < 0 ? MINUS : "+"}${number(Math.abs(100 * gain), 1)}`,
          "points of accuracy that come from the right image",
        ),
    taskTile("Masked RoIs", report.rois, baseline),
    taskTile("Masked words of text", report.words_of_text),
  ];
}

// Named words: what --words named, each hidden alone

function namedWords() {
  const groups = report.named_words;
  if (!groups.length) return null;
  return el(
    "section",
    { "aria-labelledby": "named" },
    el(
      "div",
      { class: "over" },
      el("h2", { id: "named" }, "Named words"),
      el(
        "p",
        { class: "legend" },
        "each hidden alone, everything else shown: ",
        el("i", { class: "key right" }),
        " with its image ",
        el("i", { class: "key" }),
        " with another image ",
        el("i", { class: "key chance" }),
        " always the most frequent word",
      ),
    ),
    el("div", { class: "charts groups" }, groups.map(namedGroup)),
  );
}

function namedGroup({ name, with_image: right, with_other_image: other, chance, asked }) {
  const said =
    `${name}: ${percent(right, 1)} with the image, ` +
    `${other === null ? "" : `${percent(other, 1)} with another, `}${percent(chance, 1)} by chance, ${number(asked)} asked`;
  const bar = (value, kind) => el("div", { class: "meter" }, el("i", { class: kind, "width%": 100 * value }));
  return el(
    "div",
    { class: "chart", role: "img", "aria-label": said },
    el("div", { class: "pair" }, el("h3", null, name), el("span", { class: "soft num" }, `${number(asked)} asked`)),
    el(
      "div",
      { class: "meters" },
      bar(right, "right"),
      other === null ? null : bar(other, ""),
      el("i", { class: "tick", "--at": `${100 * chance}%` }),
    ),
    el(
      "div",
      { class: "pair num" },
      el("strong", null, percent(right, 1)),
      el("span", { class: "soft" }, `${other === null ? "" : `${percent(other, 1)}, `}chance ${percent(chance, 1)}`),
    ),
  );
}
