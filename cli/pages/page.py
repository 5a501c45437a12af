"""A page from its parts. Promise: one file that asks no network, and in which data can never become markup or code.

The page's policy (Content-Security-Policy) names the hash of its one script and of its one style and allows nothing
else but pictures in data URIs. Data stand in JSON in which no character can end the element that holds them.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from vlbert_data import __version__
from vlbert_data.errors import ConfigError
from vlbert_data.shards.files import write_bytes

# `<` could end the script element or begin a comment in it; in JSON all three stand in texts only.
UNSAFE_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def render(title: str, scripts: tuple[str, ...], data: Mapping[str, Any], pictures: list[bytes | None]) -> bytes:
    """Return the page of that title: `scripts`, names of assets, draw `data` (JSON types) and `pictures` (JPEGs)."""
    style = asset("base.css")
    script = "".join(map(asset, ("base.js", *scripts)))
    coded = [None if picture is None else base64.b64encode(picture).decode() for picture in pictures]
    parts = {
        "title": html.escape(title),
        "version": html.escape(__version__),
        "style": style,
        "style_hash": digest(style),
        "script": script,
        "script_hash": digest(script),
        "data": safe_json({**data, "version": __version__}),
        "pictures": safe_json(coded),
    }
    template = asset("page.html")
    # The page says its own size, near enough: what is put in and what it is put into.
    parts["bytes"] = str(len(template) + sum(map(len, parts.values())))
    # One pass, so that braces in what was put in stay as they are.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template).encode(errors="replace")


def save(path: Path, page: bytes) -> None:
    """Write a page, all or nothing, and the folder it stands in where that is missing.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, page)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}. Give another file to --html.") from error


def asset(name: str) -> str:
    """Return the text of a file beside this module."""
    return resources.files("cli.pages").joinpath("assets", name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """Return the hash by which a Content-Security-Policy allows an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def safe_json(value: Any) -> str:
    """Return JSON that can stand inside a script element, whatever texts are in it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).translate(UNSAFE_IN_SCRIPT)
