"""A real browser for tests: headless Chromium, driven by chromedriver over its own protocol, with nothing between.

Source: WebDriver (W3C Recommendation), "Endpoints" and "Actions". Debian's packages: chromium, chromium-driver.
"""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
START_S = 30.0
WAIT_S = 10.0


class Browser:
    """One window. Everything waits for its answer; `script` runs JavaScript and returns JSON types."""

    def __init__(self, session_url: str) -> None:
        self._url = session_url

    def open(self, page: Path) -> None:
        """Load a file and wait for its load event."""
        self.log()
        self.requests()
        self._call("POST", "/url", {"url": page.resolve().as_uri()})

    def script(self, code: str, *arguments: Any) -> Any:
        """Return what the body of a function returns."""
        return self._call("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def wait_for(self, code: str, *arguments: Any) -> Any:
        """Return the first true value of a function's body."""
        deadline = time.monotonic() + WAIT_S
        while not (value := self.script(code, *arguments)):
            assert time.monotonic() < deadline, f"never true: {code}"
            time.sleep(0.02)
        return value

    def find(self, selector: str) -> str:
        """Return the first element that a CSS selector finds."""
        found: str = self._call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        return found

    def point_at(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        origin = {ELEMENT: self.find(selector)}
        self._mouse({"type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0})

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place in the window."""
        self._mouse({"type": "pointerMove", "duration": 0, "origin": "viewport", "x": round(x), "y": round(y)})

    def click(self, selector: str) -> None:
        """Click an element."""
        self._call("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self._call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """Press a key in whatever has the focus; WebDriver's codes, such as `\\ue015` for the arrow down."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def size(self, width: int, height: int, *, scale: float = 1.0, dark: bool = False) -> None:
        """Set the size of the page in pixels of CSS, how many pixels of the screen each has, and the wished colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [colours]})

    def screenshot(self, path: Path) -> None:
        """Write a PNG of what the window shows."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Send a command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self) -> list[dict[str, Any]]:
        """Return what the console said since the last call."""
        found: list[dict[str, Any]] = self._call("POST", "/se/log", {"type": "browser"})
        return found

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for since the last call, data in the page itself left out."""
        lines = self._call("POST", "/se/log", {"type": "performance"})
        events = [json.loads(line["message"])["message"] for line in lines]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        addresses = [parameters["request"]["url"] for parameters in sent]
        return [address for address in addresses if not address.startswith("data:")]

    def _mouse(self, action: dict[str, Any]) -> None:
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [action]}]})

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return call(method, self._url + path, body)


def call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    """Return the value that chromedriver answers with."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.read().decode()[:2000]}") from error


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Give a browser with a fresh profile, or skip the test where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("needs a browser: Debian's packages chromium and chromium-driver (make browser)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}")
        options = {"binary": chromium, "args": [*OPTIONS, f"--user-data-dir={profile}"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        url = f"http://127.0.0.1:{port}/session"
        session = call("POST", url, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Browser(f"{url}/{session}")
        finally:
            call("DELETE", f"{url}/{session}")
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if call("GET", f"{url}/status")["ready"]:
                return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, "chromedriver does not start"
        time.sleep(0.05)
