"""Shard folders to make pages of, and what a browser does to every page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from browser import Browser

from vlbert_data.images import encode_thumbnail
from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.synthetic import FakeShards, make_records
from vlbert_data.types import ImageRois

# What would run or vanish if a text became markup, ended its element, or was put together by hand.
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'> \"quotes\" 'and' `ticks` ${window.hacked = 1}",
    "<!-- a comment -- > & &amp; &lt; {{data}} \\u003c \u2028 next line",
    "a red \u202ecircle\u202c, \u4e00\u53ea\u732b, \U0001f408",
)


def thumbnail_of(record: ImageRois) -> bytes:
    """Return a small grey picture with a white patch for every RoI."""
    pixels = np.full((record.height_px // 8, record.width_px // 8, 3), 90, np.uint8)
    for x0, y0, x1, y1 in (record.rois.boxes / 8).astype(int):
        pixels[y0:y1, x0:x1] = 220
    return encode_thumbnail(pixels, longest_side_px=96, quality=60)


def write_folder(out: Path, fake: FakeShards, *, captions: Sequence[str] = (), shard_size: int = 1000) -> Path:
    """Write fake images with thumbnails that are pictures; `captions` go to the first images, one each."""
    out.mkdir(parents=True)
    records = [replace(record, thumbnail=thumbnail_of(record)) for record in make_records(fake)]
    for number, caption in enumerate(captions):
        records[number] = replace(records[number], captions=(caption,))
    facts = FolderFacts(
        container="lmdb",
        schema=fake.schema(),
        detector={"name": "synthetic", "attribute_names": ["plain", "striped", "dotted", "<b>bold</b>"]},
        describer={"name": "synthetic"},
        source={"format": "synthetic"},
        build={"shard_size": shard_size},
    )
    write_records(out, iter(records), facts, shard_size=shard_size)
    return out


def unnamed_controls(browser: Browser) -> list[str]:
    """Return the roles of what can be operated or looked at and has no name for people who cannot see it."""
    nodes = browser.devtools("Accessibility.getFullAXTree", {})["nodes"]
    named = {"button", "textbox", "searchbox", "slider", "spinbutton", "combobox", "checkbox", "listbox", "option"}
    named |= {"image", "link", "dialog", "ComboBoxListBox"}
    return [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in named and not node["name"]["value"]
    ]


def faint_texts(browser: Browser) -> list[str]:
    """Return texts whose contrast with the colour behind them is below 4.5. Source: WCAG 2.2, criterion 1.4.3."""
    found: list[str] = browser.script(FAINT_TEXTS)
    return found


FAINT_TEXTS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255];
};
const found = [];
for (const node of document.querySelectorAll("#page *, dialog[open] *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest("[disabled], option, .row.out")) continue;
  const [a, b] = [luminance(rgba(getComputedStyle(node).color)), luminance(behind(node))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const text = node.textContent.slice(0, 40);
  if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${node.className || node.tagName}: ${text}`);
}
return found;
"""
