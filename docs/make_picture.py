"""Writes docs/images/report.png, the picture of a page in the README: `python -m docs.make_picture PAGE.html`.

The page is that of `vlb inspect-shard --html` on the shards that `vlb tour` made. Needs chromium, as the tests do.
"""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import Browser, open_browser

PICTURE = Path(__file__).parent / "images" / "report.png"
WIDTH_PX, HEIGHT_PX = 1360, 1210
MOST_BYTES = 300_000
POINTED_AT = ".card:nth-child(2) .row:nth-child(1)"


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
        picture = compress(take(browser, page))
    assert len(picture) <= MOST_BYTES, f"{len(picture)} bytes; at most {MOST_BYTES} are kept"
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture)


def take(browser: Browser, page: Path) -> Image.Image:
    """Return the top of a page, with a RoI pointed at."""
    browser.size(WIDTH_PX, HEIGHT_PX)
    browser.open(page)
    browser.wait_for("return document.querySelector(arguments[0])", POINTED_AT)
    browser.wait_for("return [...document.images].every((image) => image.complete)")
    browser.point_at(POINTED_AT)
    browser.script("scrollTo(0, 0)")
    with tempfile.TemporaryDirectory() as folder:
        browser.screenshot(Path(folder) / "page.png")
        with Image.open(Path(folder) / "page.png") as image:
            return image.convert("RGB")


def compress(image: Image.Image) -> bytes:
    """Return a PNG, of all its colours where that is small enough, else of 256."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    if len(stream.getvalue()) > MOST_BYTES:
        stream = io.BytesIO()
        image.quantize(256, method=Image.Quantize.FASTOCTREE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    main()
