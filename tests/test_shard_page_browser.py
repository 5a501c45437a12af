"""`vlb inspect-shard --html` in a real browser: what it shows, what answers to pointer and keys, and how it scrolls."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, open_browser
from pages_world import HOSTILE, faint_texts, unnamed_controls, write_folder

from cli.pages.page import save
from cli.pages.shards import Wanted, make_page
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.synthetic import FakeShards, class_names, write_shards
from vlbert_data.types import ImageRois
from vlbert_data.verify import verify

ARROW_DOWN, ENTER, ESCAPE, ARROW_RIGHT = "\ue015", "\ue007", "\ue00c", "\ue014"
CARD = ".card[data-number='5']"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fake = FakeShards(num_images=24, masked_views=2, has_attributes=True, num_rois=(2, 9))
    return write_folder(tmp_path_factory.mktemp("pages") / "shards", fake, captions=HOSTILE)


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    path = folder.parent / "report.html"
    save(path, make_page(folder, Wanted(most_images=1000, verdict=verify(folder))).html)
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The page, freshly loaded, with the pointer outside all cards."""
    browser.size(1400, 900)
    browser.open(page)
    browser.point(1, 1)
    browser.script(f'document.querySelector("{CARD}").scrollIntoView({{ block: "center" }})')
    browser.wait_for(f'return document.querySelector("{CARD} .row")')
    return browser


def records(folder: Path) -> list[ImageRois]:
    found = ShardFolder.open(folder)
    return [found.read(number) for number in range(len(found))]


def lit(browser: Browser) -> list[int]:
    """Return the RoIs that are drawn as pointed at, by their boxes' order in the data."""
    found: list[int] = browser.script(
        "const left = images[5].rois.map((roi) => String(roi[0]));"
        f'return [...document.querySelectorAll("{CARD} .roi.lit .line")]'
        ".map((line) => left.indexOf(line.getAttribute('x')))"
    )
    return found


def shown(browser: Browser) -> list[int]:
    """Return the numbers of the images in the gallery, in the order in which they stand."""
    found: list[int] = browser.script(
        "return [...document.querySelectorAll('.card')].filter((card) => !card.hidden).map((c) => +c.dataset.number)"
    )
    return found


def test_pointing_at_a_row_lights_its_roi_and_says_class_and_score(opened: Browser, folder: Path) -> None:
    assert lit(opened) == []
    rois = records(folder)[5].rois
    for number in (1, 0):
        opened.point_at(f"{CARD} .row:nth-child({number + 1})")
        assert lit(opened) == [number]
        tag = opened.script(f'return document.querySelector("{CARD} .tag").textContent')
        name = class_names(8)[rois.label_ids[number, 0]]
        assert name in tag
        assert f"{float(rois.scores[number]):.2f}" in tag
        dimmed = f'return getComputedStyle(document.querySelector("{CARD} .roi:not(.lit)")).opacity'
        opened.wait_for(f"{dimmed} < 0.5")
    opened.point(1, 1)
    assert lit(opened) == []
    assert opened.script(f'return document.querySelector("{CARD} .tag").hidden')


def test_pointing_at_the_picture_lights_the_smallest_roi_there_and_its_row(opened: Browser, folder: Path) -> None:
    record = records(folder)[5]
    frame = opened.script(
        f'const b = document.querySelector("{CARD} .picture").getBoundingClientRect();'
        "return [b.left, b.top, b.width, b.height]"
    )
    for x0, y0, x1, y1 in record.rois.boxes.tolist():
        x, y = round(frame[0] + (x0 + x1) / 2 / record.width_px * frame[2]), (y0 + y1) / 2
        y = round(frame[1] + y / record.height_px * frame[3])
        opened.point(x, y)
        at_x, at_y = (x - frame[0]) / frame[2] * record.width_px, (y - frame[1]) / frame[3] * record.height_px
        around = [
            (box[2] - box[0]) * (box[3] - box[1]) if box[0] <= at_x <= box[2] and box[1] <= at_y <= box[3] else 1e9
            for box in record.rois.boxes.tolist()
        ]
        smallest = around.index(min(around))
        assert lit(opened) == [smallest]
        rows = f'[...document.querySelectorAll("{CARD} .row")]'
        assert opened.script(f"return {rows}.findIndex((row) => row.classList.contains('lit'))") == smallest


def test_rows_answer_to_keys_and_enter_opens_the_image(opened: Browser) -> None:
    opened.script(f'document.querySelector("{CARD} .rows").focus()')
    opened.press(ARROW_DOWN)
    opened.press(ARROW_DOWN)
    assert lit(opened) == [1]
    active = f"document.querySelector(\"{CARD} .rows\").getAttribute('aria-activedescendant')"
    assert opened.script(f"return document.getElementById({active}).getAttribute('aria-selected')") == "true"
    opened.press(ENTER)
    assert opened.script("return document.querySelector('dialog').open")
    assert opened.script("return document.querySelector('dialog h3').textContent") == "00000005"
    opened.press(ARROW_RIGHT)
    assert opened.script("return document.querySelector('dialog h3').textContent") == "00000006"
    opened.press(ESCAPE)
    assert not opened.script("return document.querySelector('dialog').open")


def test_a_masked_view_hatches_the_rois_whose_pixels_it_hid(opened: Browser, folder: Path) -> None:
    views = records(folder)[5].masked_views
    assert views is not None
    opened.click(f"{CARD} .open")
    covered = "return document.querySelectorAll('dialog .roi.covered').length"
    assert opened.script(covered) == 0
    for view in (0, 1):
        opened.click(f"dialog .views button:nth-child({view + 2})")
        assert opened.script(covered) == int(views.chosen[view].sum())
    assert opened.script("return document.querySelector('dialog .row .name').textContent").startswith(
        ("plain", "striped", "dotted", "<b>bold</b>")
    )
    assert unnamed_controls(opened) == []


def test_filters_show_what_a_loop_over_the_records_finds(opened: Browser, folder: Path) -> None:
    found = records(folder)
    everything = list(range(24))
    classes = [set(record.rois.label_ids[:, 0].tolist()) for record in found]
    opened.click(".rank:nth-child(1)")
    chosen = opened.script("return +document.querySelector('.rank:nth-child(1)').dataset.class")
    expected = [i for i in everything if chosen in classes[i]]
    assert 0 < len(expected) < 24
    assert shown(opened) == expected
    assert opened.script("return document.querySelector('.result').textContent") == f"{len(expected)} of 24 images"
    other = next(c for c in range(8) if c != chosen)
    opened.type("#class", class_names(8)[other])
    assert shown(opened) == [i for i in everything if {chosen, other} <= classes[i]]
    opened.click(".chip")
    opened.click(".chip")
    assert shown(opened) == everything
    opened.type("[aria-label='Fewest RoIs']", "4")
    opened.type("[aria-label='Most RoIs']", "6")
    assert shown(opened) == [i for i in everything if 4 <= found[i].num_rois <= 6]
    for name in ("Fewest", "Most"):
        clear = (
            "const box = document.querySelector(arguments[0]); box.value = ''; box.dispatchEvent(new Event('input'))"
        )
        opened.script(clear, f"[aria-label='{name} RoIs']")
    opened.type("#text", "NEXT LINE")
    assert shown(opened) == [2]
    assert "none" not in opened.script(
        "return getComputedStyle(document.querySelector('.card[data-number=\"2\"]')).display"
    )
    opened.type("#text", " and no more")
    assert shown(opened) == []
    assert opened.script("return document.querySelector('.nothing').checkVisibility()")


def test_a_score_dims_rois_below_it_and_a_bar_of_the_histogram_filters(opened: Browser, folder: Path) -> None:
    found = records(folder)
    opened.script("const s = document.getElementById('score'); s.value = 0.7; s.dispatchEvent(new Event('input'))")
    dimmed = sum(score < 0.7 for score in found[5].rois.scores.round(3).tolist())
    assert dimmed > 0
    opened.wait_for(
        "return document.querySelectorAll(arguments[0]).length === arguments[1]", f"{CARD} .roi.out", dimmed
    )
    low, high = opened.script(
        "const b = document.querySelector('.bars button'); return [+b.dataset.low, +b.dataset.high]"
    )
    opened.click(".bars button")
    assert shown(opened) == [i for i, record in enumerate(found) if low <= record.num_rois <= high]
    opened.script("const o = document.getElementById('order'); o.value = 'most'; o.dispatchEvent(new Event('change'))")
    opened.click(".bars button")
    counts = [found[i].num_rois for i in shown(opened)]
    assert counts == sorted((record.num_rois for record in found), reverse=True)


def test_hostile_captions_are_read_as_text(opened: Browser) -> None:
    texts = opened.script(
        "return [0, 1, 2, 3].map((i) => document.querySelector(`.card[data-number='${i}'] li`).textContent)"
    )
    assert texts == list(HOSTILE)
    assert opened.script("return window.hacked") is None
    assert opened.script("return document.querySelectorAll('#page script, #page b').length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_asks_no_network_logs_nothing_and_can_be_read(browser: Browser, page: Path, *, dark: bool) -> None:
    browser.size(1400, 900, dark=dark)
    browser.open(page)
    browser.script("document.getElementById('facts').open = true")
    browser.wait_for("return document.querySelectorAll('.card img').length > 5")
    browser.wait_for("return [...document.images].every((image) => image.complete && image.naturalWidth)")
    assert faint_texts(browser) == []
    assert unnamed_controls(browser) == []
    assert browser.script("return [...document.images].every((image) => image.alt)")
    stated = browser.script("return Number(document.documentElement.dataset.bytes)")
    assert stated == pytest.approx(page.stat().st_size, rel=0.01)
    assert f"{stated / 1000:.1f} kB" in browser.script("return document.querySelector('footer').textContent")
    assert browser.log() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.script("return fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"


@pytest.mark.parametrize(
    "kind", [{"label_topk": 0}, {"num_rois": (0, 0)}, {"container": "hdf5"}, {"num_images": 1}], ids=str
)
def test_folders_of_every_kind_have_a_page_without_errors(
    browser: Browser, tmp_path: Path, kind: dict[str, Any]
) -> None:
    folder = write_shards(tmp_path / "shards", **{"num_images": 3, **kind})
    save(tmp_path / "page.html", make_page(folder, Wanted(most_images=10)).html)
    browser.size(1400, 900)
    browser.open(tmp_path / "page.html")
    browser.script("document.getElementById('gallery').scrollIntoView()")
    browser.wait_for("return document.querySelector('.card .open')")
    browser.click(".card .open")
    record = records(folder)[0]
    assert browser.script("return document.querySelectorAll('dialog .row').length") == record.num_rois
    assert browser.script("return document.querySelector('dialog li').textContent") == record.captions[0]
    assert browser.log() == []


def test_nothing_is_wider_than_a_narrow_window(browser: Browser, page: Path) -> None:
    browser.size(390, 800)
    browser.open(page)
    browser.script("document.getElementById('gallery').scrollIntoView()")
    browser.wait_for("return document.querySelector('.card .row')")
    assert browser.script("return document.documentElement.scrollWidth") <= 390


def test_of_a_thousand_images_only_those_near_the_window_are_drawn(browser: Browser, tmp_path: Path) -> None:
    fake = FakeShards(num_images=1000, num_rois=(10, 50), num_classes=40)
    folder = write_folder(tmp_path / "many", fake)
    page = tmp_path / "many.html"
    save(page, make_page(folder, Wanted(most_images=1000)).html)
    browser.size(1400, 900)
    browser.open(page)
    drawn = (
        "return [...document.querySelectorAll('.card')].filter((card) => card.firstChild).map((c) => +c.dataset.number)"
    )
    height = browser.script("return document.documentElement.scrollHeight")
    seen: set[int] = set()
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        browser.script("scrollTo(0, arguments[0])", round(share * height))
        # The card in the middle of the window is drawn soon after one arrives there.
        browser.wait_for("return document.elementFromPoint(400, 600)?.closest('.card')?.firstChild ?? scrollY === 0")
        browser.wait_for(f"return (() => {{ {drawn} }})().length < 60")
        seen |= set(browser.script(drawn))
    assert 40 < len(seen) < 300
    assert max(seen) == 999
    assert browser.script("return document.documentElement.scrollHeight") == height
    assert browser.log() == []
