"""A headless Chromium for tests of pages, driven through its DevTools protocol.

Tests take the fixture `browser` of `conftest.py`, which skips them with a reason where Chromium or `websockets` is
missing. A page is opened with `with browser.open(address) as page:`; it keeps what was requested and what was logged.
Wait for a condition (`page.wait`) or for drawn frames (`page.settle`), never for a time.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--enable-unsafe-swiftshader", "--hide-scrollbars", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--mute-audio",
    "--remote-debugging-port=0",
)  # fmt: skip
START_SECONDS, ANSWER_SECONDS = 30.0, 60.0


def find_chromium() -> str | None:
    """Return the path of Chromium or Chrome; None where none is installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A running Chromium. Close it at the end."""

    def __init__(self, flags: Sequence[str] = ()) -> None:
        from websockets.sync.client import connect

        program = find_chromium()
        assert program, "needs Chromium"
        self.home = tempfile.mkdtemp(prefix="chromium-")
        self.process = subprocess.Popen(
            [program, *FLAGS, *flags, f"--user-data-dir={self.home}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self.socket = connect(self._address(), max_size=None, open_timeout=START_SECONDS)
        except BaseException:
            self._end()
            raise
        self.numbers = itertools.count(1)
        self.pages: dict[str, Page] = {}

    def _address(self) -> str:
        """The address of the DevTools, which Chromium writes into its folder."""
        file, end = Path(self.home) / "DevToolsActivePort", time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError, ValueError):
                port, path = file.read_text().split()
                return f"ws://127.0.0.1:{port}{path}"
            time.sleep(0.02)
        raise RuntimeError(f"Chromium has not started, return code {self.process.poll()}")

    def send(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; returns its result."""
        number = next(self.numbers)
        to = {} if session is None else {"sessionId": session}
        self.socket.send(json.dumps({"id": number, "method": method, "params": values, **to}))
        while True:
            answer = json.loads(self.socket.recv(timeout=ANSWER_SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            page = self.pages.get(answer.get("sessionId", ""))
            if page is not None and "method" in answer:
                page._note(answer["method"], answer["params"])

    @contextmanager
    def open(
        self,
        address: str | Path,
        *,
        size: tuple[int, int] = (1000, 700),
        scheme: str = "light",
        offline: bool = True,
        before: str = "",
        touch: bool = False,
    ) -> Iterator[Page]:
        """Open an address, or a file, in a context of its own and wait until it is loaded.

        Args:
            address: A URL or the path of a file.
            size: Width and height of the window in pixels of CSS.
            scheme: What the user prefers, "light" or "dark".
            offline: Whether there is no network. Servers of this machine are network, too.
            before: JavaScript that runs before the page's own.
            touch: Whether the screen is one to touch.
        """
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Network", "Log"):
                page.send(f"{domain}.enable")
            page.resize(*size)
            page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.send("Emulation.setTouchEmulationEnabled", enabled=touch)
            if offline:
                page.send(
                    "Network.emulateNetworkConditions",
                    offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1,
                )  # fmt: skip
            if before:
                page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
            url = address.resolve().as_uri() if isinstance(address, Path) else address
            answer = page.send("Page.navigate", url=url)
            assert not answer.get("errorText"), f"{url}: {answer['errorText']}"
            page.wait("document.readyState === 'complete'")
            yield page
        finally:
            del self.pages[session]
            self.send("Target.disposeBrowserContext", browserContextId=context)

    def close(self) -> None:
        """End Chromium."""
        with suppress(Exception):
            self.send("Browser.close")
            self.socket.close()
        self._end()

    def _end(self) -> None:
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


class Page:
    """An open page.

    Attributes:
        requests: Addresses that were asked for, in order.
        messages: What the page logged, warned about or threw, and what Chromium said of it, other than that software
            draws slowly.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.requests: list[str] = []
        self.messages: list[str] = []

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol for this page."""
        return self.browser.send(method, self.session, **values)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        problem = answer.get("exceptionDetails")
        assert problem is None, f"{expression}: {problem.get('exception', problem).get('description', problem)}"
        return answer["result"].get("value")

    def wait(self, condition: str, *, seconds: float = 60.0) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} is not true after {seconds:g} s; {self.messages}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until what was changed is drawn, at least by two frames."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Scroll to an element; returns (left, top, width, height) in pixels of the window."""
        text = json.dumps(selector)
        left, top, width, height = self.evaluate(
            f"(() => {{ const e = document.querySelector({text}); e.scrollIntoView({{block: 'nearest'}});"
            " const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        return left, top, width, height

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        self.drag((x, y), (x, y))

    def click_on(self, selector: str) -> None:
        """Click on the middle of an element."""
        left, top, width, height = self.box(selector)
        self.click(left + width / 2, top + height / 2)

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, button: str = "left") -> None:
        """Press a button at one place and release it at another."""
        common = {"button": button, "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=start[0], y=start[1])
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **common)
        if start != end:
            for share in (0.25, 0.5, 0.75, 1.0):
                x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
                self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button=button)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **common)

    def press(self, key: str) -> None:
        """Press a key by its name in JavaScript, such as "End" or "n"."""
        codes = {"End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {"text": key}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **code)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def fill(self, selector: str, value: str) -> None:
        """Give an input, such as a slider, a value, and the events that a user's change has."""
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " for (const name of ['input', 'change']) e.dispatchEvent(new Event(name, {bubbles: true})); })()"
        )

    def screenshot(self, selector: str | None = None, *, whole: bool = False) -> Image.Image:
        """Return a picture (RGB) of the window, of an element in it, or of the whole page."""
        clip = {}
        if selector is not None:
            left, top, width, height = self.box(selector)
            scroll = self.evaluate("[scrollX, scrollY]")
            clip = {"clip": {"x": left + scroll[0], "y": top + scroll[1], "width": width, "height": height, "scale": 1}}
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        return Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")

    def _note(self, method: str, values: dict[str, Any]) -> None:
        """Keep what an event says."""
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled":
            said = [str(each.get("value", each.get("description"))) for each in values["args"]]
            self.messages.append(f"{values['type']}: {' '.join(said)}")
        elif method == "Log.entryAdded" and "GL Driver Message" not in values["entry"]["text"]:
            self.messages.append(f"{values['entry']['level']}: {values['entry']['text']}")


def why_not() -> str | None:
    """Return why no browser can be started here; None where one can."""
    if find_chromium() is None:
        return "needs Chromium (Debian and Ubuntu: apt-get install chromium)"
    if os.name == "nt":
        return "the flags are those of Chromium on Linux and macOS"
    try:
        import websockets.sync.client  # noqa: F401
    except ImportError:
        return "needs the package websockets, of the extra test"
    return None
