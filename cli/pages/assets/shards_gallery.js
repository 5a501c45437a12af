// The gallery of the page of a shard folder: cards, the large view, and the filters; after shards_figures.js.

function roisOf(image) {
  return image.rois.map((roi) => ({
    box: boxOf(roi),
    colour: colourOf(classOf(roi)),
    label: labelOf(roi),
    state: isWanted(roi) ? "" : "out",
  }));
}

function rowOf(roi, ...more) {
  const attribute = attributeOf(roi);
  return el(
    "div",
    { class: isWanted(roi) ? "row" : "row out" },
    el("span", { class: "dot", "--colour": colourOf(classOf(roi)) }),
    el(
      "span",
      { class: "name" },
      attribute ? el("span", { class: "soft" }, `${attribute} `) : null,
      nameOf(classOf(roi)),
    ),
    el("span", { class: "gauge", "--share": `${100 * scoreOf(roi)}%`, "--colour": colourOf(classOf(roi)) }),
    el("span", { class: "score" }, number(scoreOf(roi), 2)),
    ...more,
  );
}

const altOf = (image) => `${image.id}: ${image.captions[0]}`;
const shapeOf = (image) => ({ width: image.w, height: image.h });

function titleOf(image) {
  return [
    el("h3", { title: image.id }, image.id),
    el("span", { class: "num" }, `${image.w} × ${image.h}`),
    el("span", { class: "num" }, plural(image.rois.length, "RoI")),
  ];
}

function captionsOf(image) {
  const isLong = image.captions.length > 2 || image.captions[0].length > 160;
  return el(
    "ul",
    { class: "captions", tabindex: isLong ? 0 : null, "aria-label": "Captions" },
    image.captions.map((caption) => el("li", { dir: "auto" }, caption)),
  );
}

function drawCard(i) {
  const image = images[i];
  const open = () => openLarge(i);
  const { picture, rows } = joined(
    shapeOf(image),
    sourceOf(i),
    altOf(image),
    roisOf(image),
    image.rois.map((roi) => rowOf(roi)),
    `RoIs of ${image.id}`,
    open,
  );
  picture.classList.toggle("bare", !state.boxes);
  return cardOf(picture, titleOf(image), image.id, open, [captionsOf(image), rows]);
}

function drawLarge(i) {
  const image = images[i];
  const rows = image.rois.map((roi) => rowOf(roi, el("span", { class: "more" }, detailOf(roi, image))));
  const {
    picture,
    rows: list,
    setState,
  } = joined(shapeOf(image), sourceOf(i), altOf(image), roisOf(image), rows, `RoIs of ${image.id}`);
  const show = (view) => {
    const hidden = new Set(view === null ? [] : image.views[view]);
    image.rois.forEach((roi, r) => setState(r, hidden.has(r) ? "covered" : isWanted(roi) ? "" : "out"));
    views.forEach((button, at) => button.setAttribute("aria-pressed", String(at === (view === null ? 0 : view + 1))));
  };
  const views = image.views.length
    ? [null, ...image.views.keys()].map((view) =>
        el(
          "button",
          { class: "quiet", type: "button", onclick: () => show(view) },
          view === null ? "As it is" : `Masked view ${view + 1} (${image.views[view].length})`,
        ),
      )
    : [];
  show(null);
  const bar = views.length
    ? el("div", { class: "views", role: "group", "aria-label": "Views: hatched RoIs had their pixels zeroed" }, views)
    : null;
  return {
    picture,
    side: [el("div", { class: "title" }, ...titleOf(image)), captionsOf(image), bar, list].filter(Boolean),
  };
}

function detailOf(roi, image) {
  const [x0, y0, x1, y1] = boxOf(roi),
    [, , , , , pairs, attribute, chance] = roi;
  const classes = [];
  for (let at = 0; at < pairs.length; at += 2) classes.push(`${nameOf(pairs[at])} ${number(pairs[at + 1], 2)}`);
  const share = ((x1 - x0) * (y1 - y0)) / (image.w * image.h);
  const parts = [
    classes.length > 1 ? classes.join(", ") : "",
    `${number(x1 - x0)} × ${number(y1 - y0)} px at ${number(x0)}, ${number(y0)}; ` +
      `${percent(share, 1)} of the image`,
  ];
  if (attribute !== null && attribute !== undefined) parts.splice(1, 0, `${attributeOf(roi)} ${number(chance, 2)}`);
  return parts.filter(Boolean).join(" · ");
}

// Filters

function passes(image) {
  const count = image.rois.length,
    found = new Set(image.rois.filter((roi) => scoreOf(roi) >= state.score).map(classOf));
  return (
    (state.least === null || count >= state.least) &&
    (state.most === null || count <= state.most) &&
    [...state.classes].every((id) => found.has(id)) &&
    (!state.text ||
      image.captions.some((text) => text.toLowerCase().includes(state.text)) ||
      image.id.toLowerCase().includes(state.text))
  );
}

let visible = images.map((_, i) => i);

function apply() {
  visible = images.map((_, i) => i).filter((i) => passes(images[i]));
  const most = (i) => images[i].rois.length;
  if (state.order === "most") visible.sort((a, b) => most(b) - most(a));
  if (state.order === "fewest") visible.sort((a, b) => most(a) - most(b));
  showCards(cards, grid, visible, result, "image");
  redraw();
  nothing.hidden = visible.length > 0;
  const ids = [...state.classes];
  chips.replaceChildren(
    ...ids.map((id) =>
      el(
        "button",
        {
          class: "chip",
          type: "button",
          "aria-label": `Without the class ${nameOf(id)}`,
          onclick: () => toggleClass(id),
        },
        el("span", { class: "dot", "--colour": colourOf(id) }),
        nameOf(id),
        " ×",
      ),
    ),
  );
  document.querySelectorAll(".rank").forEach((row) => {
    const on = state.classes.has(Number(row.dataset.class));
    row.classList.toggle("on", on);
    row.setAttribute("aria-pressed", String(on));
  });
  document
    .querySelectorAll(".bars button")
    .forEach((bar) =>
      bar.classList.toggle("on", state.least === Number(bar.dataset.low) && state.most === Number(bar.dataset.high)),
    );
  leastBox.value = state.least ?? "";
  mostBox.value = state.most ?? "";
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

const usedClasses = [...new Set(images.flatMap((image) => image.rois.map(classOf)))]
  .filter((id) => id !== null)
  .sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
const idByName = new Map(usedClasses.map((id) => [nameOf(id).toLowerCase(), id]));
const cards = makeCards(images.map((image) => `Image ${image.id}`));
const grid = el("div", { class: "cards" }, cards);
const chips = el("span", { class: "chips" });
const result = el("span", { class: "result", role: "status" });
const nothing = el("p", { class: "nothing", hidden: true }, "No image has all of this. Take a filter away.");
const whole = (input) => (input.value === "" ? null : Number(input.value));
const counted = (name) =>
  el("input", {
    type: "number",
    min: 0,
    "aria-label": name,
    oninput: () => {
      [state.least, state.most] = [whole(leastBox), whole(mostBox)];
      apply();
    },
  });
const leastBox = counted("Fewest RoIs"),
  mostBox = counted("Most RoIs");

function tools() {
  const classBox = el("input", {
    type: "search",
    list: "classes",
    id: "class",
    placeholder: "a class …",
    "aria-label": "Only images with this class",
    oninput: (event) => {
      const id = idByName.get(event.target.value.trim().toLowerCase());
      if (id === undefined) return;
      state.classes.add(id);
      event.target.value = "";
      apply();
    },
  });
  const said = el("output", { class: "num" }, "0.00");
  const score = el("input", {
    type: "range",
    id: "score",
    min: 0,
    max: 1,
    step: 0.05,
    value: 0,
    oninput: (event) => {
      state.score = Number(event.target.value);
      said.textContent = number(state.score, 2);
      apply();
    },
  });
  const order = el(
    "select",
    {
      id: "order",
      "aria-label": "Order",
      onchange: (event) => {
        state.order = event.target.value;
        apply();
      },
    },
    [
      ["stored", "as stored"],
      ["most", "most RoIs first"],
      ["fewest", "fewest RoIs first"],
    ].map(([value, text]) => el("option", { value }, text)),
  );
  return el(
    "div",
    { class: "tools", role: "search", "aria-label": "Filters" },
    el("input", {
      type: "search",
      id: "text",
      placeholder: "words of a caption …",
      "aria-label": "Only images whose caption or id has these words",
      oninput: (event) => {
        state.text = event.target.value.trim().toLowerCase();
        apply();
      },
    }),
    classBox,
    el(
      "datalist",
      { id: "classes" },
      usedClasses.map((id) => el("option", { value: nameOf(id) })),
    ),
    el("label", null, "RoIs", leastBox, "to", mostBox),
    el("label", null, "score from", score, said),
    el(
      "label",
      null,
      el("input", {
        type: "checkbox",
        id: "boxes",
        checked: true,
        onchange: (event) => {
          state.boxes = event.target.checked;
          redraw();
        },
      }),
      "boxes",
    ),
    order,
    chips,
    result,
  );
}

function gallery() {
  const how =
    shown.images === shown.of
      ? "all images"
      : `${number(shown.images)} of ${plural(shown.of, "image")}` +
        (shown.images < shown.sound ? ", spread evenly (--html-images)" : "") +
        (shown.sound < shown.of ? ", damaged ones left out" : "");
  const without = shown.pictures ? shown.images - shown.pictures : 0;
  const seen = without ? `${shown.from}; ${number(without)} have none` : shown.from;
  return el(
    "section",
    { id: "gallery", tabindex: -1, "aria-labelledby": "pictures-title" },
    el(
      "div",
      { class: "over" },
      el("h2", { id: "pictures-title" }, "Images"),
      el("p", null, `${how} · pictures: ${seen}`),
    ),
    tools(),
    grid,
    nothing,
  );
}

document
  .getElementById("page")
  .append(
    el("main", null, head(), ...(facts ? [charts(), factSection(), gallery()] : [])),
    footer("inspect-shard", "Point at a row or a box; arrow keys move, Enter opens the image, ← and → leaf."),
  );
const openLarge = largeView(() => visible, drawLarge);
const redraw = lazily(cards, drawCard);
if (facts) apply();
