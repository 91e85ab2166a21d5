"""Chromium without a window, driven over a pipe by its DevTools protocol: what tests of a page need, and no more."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 30.0
"""For the slowest answer, the start of the browser on a busy machine."""


def find_chromium() -> str | None:
    """Return the browser: $CHROME, else the first one found."""
    return os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """An open page. `evaluate` asks it, `problems` are its console errors, exceptions and requests so far."""

    def __init__(self, requests: int, answers: int):
        self._requests, self._answers, self._buffer = requests, answers, b""
        self._count, self._session, self._loaded = 0, None, False
        self.problems: list[str] = []

    def open(self, url: str) -> None:
        """Open a tab and load a page in it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.load(url)

    def load(self, url: str) -> None:
        """Load a page and wait for it."""
        self.problems, self._loaded = [], False
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + _SECONDS
        while not self._loaded:
            self._note(self._receive(deadline))
        self.problems = [problem for problem in self.problems if problem != f"request: {url}"]

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression, after the next frame was drawn."""
        promise = f"new Promise(done => requestAnimationFrame(() => setTimeout(() => done({expression}))))"
        answer = self.call("Runtime.evaluate", expression=promise, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Set the size of the window in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def prefer(self, scheme: str = "light", media: str = "screen") -> None:
        """Set the colour scheme, light or dark, and the medium, screen or print."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def touch(self, x: float, y: float) -> None:
        """Tap with a finger."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        codes = {"Enter": {"text": "\r", "windowsVirtualKeyCode": 13}, "Tab": {"windowsVirtualKeyCode": 9}}
        facts = {"key": key, "code": key} | codes.get(key, {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def print(self) -> bytes:
        """Return the page as PDF."""
        self.call("Emulation.clearDeviceMetricsOverride")
        self.call("Emulation.setEmulatedMedia", media="", features=[])
        return base64.b64decode(self.call("Page.printToPDF")["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while (answer := self._receive(deadline)).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f"Chromium did not answer within {_SECONDS} s")
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                raise ConnectionError("Chromium has ended")
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, facts = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {facts['exceptionDetails']}")
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.problems.append(f"console: {facts['args']}")
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"log: {facts['entry']['text']}")
        elif method == "Network.requestWillBeSent" and not facts["request"]["url"].startswith("data:"):
            self.problems.append(f"request: {facts['request']['url']}")


@contextlib.contextmanager
def chromium(binary: str, profile: Path) -> Iterator[Page]:
    """Start the browser with a profile of its own, and end it."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    # The protocol's pipe is file descriptors 3 and 4; root needs --no-sandbox, containers have a small /dev/shm.
    options = (
        "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}", "about:blank",
    )  # fmt: skip
    command = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", binary, *options], pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read)
    finally:
        os.close(to_write)  # the browser ends with its pipe
        os.close(from_read)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
