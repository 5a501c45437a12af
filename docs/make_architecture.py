"""Writes the floors and the rooms in docs/architecture.md from the code itself: `make docs`."""

import ast
import re
from pathlib import Path

from tests.test_architecture import FLOORS, floor, modules

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str) -> str:
    """Return the page with its two made parts as they should be; what people wrote stays."""
    for name, text in (("floors", floors()), ("rooms", rooms())):
        pattern = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)"
        assert re.search(pattern, page, re.DOTALL), f"the page has a place for {name}"
        page = re.sub(pattern, lambda match, text=text: f"{match[1]}\n{text}\n{match[2]}", page, flags=re.DOTALL)
    return page


def floors() -> str:
    """Return the table of floors, the highest first."""
    rows = ["| floor | what lives there |", "| --- | --- |"]
    for number in sorted(set(FLOORS.values()), reverse=True):
        names = sorted(name for name, own in FLOORS.items() if own == number)
        # A package's own floor is that of what it does not name apart.
        packages = {"vlbert_data", "vlbert_train"}
        named = [f"everything else of `{name}`" if name in packages else f"`{name}`" for name in names]
        rows.append(f"| {number} | {', '.join(named)} |")
    return "\n".join(rows) + "\n"


def rooms() -> str:
    """Return a table of modules for each package."""
    found: dict[str, list[str]] = {}
    for name, path in modules():
        place = path.relative_to(ROOT)
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        line = text.split("\n", 1)[0].replace("|", "\\|")
        file = "" if place.name == "__init__.py" else place.name
        found.setdefault(place.parent.as_posix(), []).append(f"| `{file or '.'}` | {floor(name)} | {line} |")
    head = "| file | floor | |\n| --- | --- | --- |\n"
    return "\n".join(f"### {package}/\n\n{head}" + "\n".join(rows) + "\n" for package, rows in found.items())


if __name__ == "__main__":
    main()
