"""A real headless Chromium for tests, driven through its DevTools protocol."""

import base64
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

WAIT_SECONDS = 90.0
_KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
}

# What is clicked does not scroll away meanwhile.
_STILL = {"name": "prefers-reduced-motion", "value": "reduce"}
# WCAG 2.2, 1.4.3: 4.5, and 3 for text of 24 px or bold of 18.66 px.
_LOW_CONTRAST = """(() => {
  // Mixed colours are given as color(srgb r g b / a), of 1.
  const channels = (text) => {
    const scale = text.startsWith("color") ? 255 : 1;
    return text.match(/[\\d.]+/g).map((one, place) => Number(one) * (place < 3 ? scale : 1));
  };
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((one, place) => one * a + below[place] * (1 - a));
  const ground = (node) => {
    const chain = [];
    for (let one = node; one; one = one.parentElement) chain.unshift(channels(getComputedStyle(one).backgroundColor));
    return chain.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const light = (colour) => {
    const linear = (one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  let seen = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest(":disabled, .sr, script, kbd, option")) continue;
    seen += 1;
    const style = getComputedStyle(node);
    const below = ground(node);
    const [one, other] = [light(over(channels(style.color), below)), light(below)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < least) found.push(`${ratio.toFixed(2)}: ${texts.currentNode.data.trim().slice(0, 40)}`);
  }
  return {found, seen};
})()"""


class Browser:
    """One browser process; every page has cookies and storage of its own."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = count(1)

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events are passed over."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=WAIT_SECONDS))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def new_page(self, url: str) -> "Page":
        """Open a page in a profile of its own."""
        profile = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=profile)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        # Every page takes keys as if it were in front.
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.call("Emulation.setEmulatedMedia", features=[_STILL])
        page.open(url)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol on this tab."""
        return self._browser.call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are awaited. Raises ``RuntimeError`` when it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true. Raises ``AssertionError`` with what is shown if it never is."""
        poll = f"""new Promise((resolve) => {{
            const end = Date.now() + {WAIT_SECONDS / 2 * 1000};
            const look = () => {{
              let found = false;
              try {{ found = Boolean({condition}); }} catch (error) {{ found = false; }}
              if (found || Date.now() > end) resolve(found); else setTimeout(look, 20);
            }};
            look();
        }})"""
        for _ in range(3):
            try:
                assert self.evaluate(poll), f"never true: {condition}\nthe page shows: {self.text('body')}"
            except RuntimeError:
                # The page was replaced while we looked.
                continue
            return
        raise AssertionError(f"the page is replaced again and again: {condition}")

    def text(self, selector: str) -> str:
        """Text as a person sees it: once drawn; before, `content-visibility: auto` has none of a new element."""
        drawn = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
        return str(self.evaluate(f"{drawn}.then(() => document.querySelector({json.dumps(selector)}).innerText)"))

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element."""
        place = self.evaluate(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'nearest'}); const box = node.getBoundingClientRect();"
            " return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key: one character, or a name such as ArrowLeft."""
        if key in _KEYS:
            extra = {"text": "\r"} if key == "Enter" else {}
            code = {"key": key, "windowsVirtualKeyCode": _KEYS[key]}
            self.call("Input.dispatchKeyEvent", type="keyDown", **code, **extra)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)
            return
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def write(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def offline(self, lost: bool) -> None:
        """Lose the connection, or have it back."""
        self.call("Network.enable")
        self.call(
            "Network.emulateNetworkConditions", offline=lost, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def looks(self, width: int, height: int, *, dark: bool = False) -> None:
        """Size of the window and colour scheme; below 600 pixels it is a phone."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, _STILL])

    def assert_readable(self) -> None:
        """Every text that is shown stands out against what is behind it."""
        result = self.evaluate(_LOW_CONTRAST)
        assert result["found"] == []
        assert result["seen"] >= 4

    def screenshot(self, file: Path) -> None:
        """Write what the window shows as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run a browser whose profile is in ``folder``. Skips the test when none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium found: install Debian's `chromium`")
    command = [
        program,
        "--headless=new",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-renderer-backgrounding",
        "--disable-background-timer-throttling",
        "--no-first-run",
        # Chromium's sandbox refuses root.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(
            (
                found.group(1)
                for line in process.stderr
                if (found := re.search(r"DevTools listening on (ws://\S+)", line))
            ),
            None,
        )
        assert address is not None, "Chromium ended before it listened"
        # A full pipe would stop it.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with connect(address, max_size=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of a process."""
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running
