"""A real headless Chromium, driven through chromedriver's own protocol (W3C WebDriver) for the tests of the page.

The protocol is JSON over HTTP on loopback, so no client library is needed. The browser keeps a log of every request
that it makes, which tells whether a page stayed at home.
"""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 60.0
WAIT_S = 30.0
POLL_S = 0.1
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference to an element
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class BrowserError(RuntimeError):
    """The browser did not do what was asked, or did not get to what was waited for."""


class Browser:
    """One Chromium window; a context manager. `dark` asks pages for their dark colours."""

    def __init__(self, *, width: int = 1100, height: int = 1000, dark: bool = False) -> None:
        self._size = (width, height)
        self._dark = dark
        self._session = ""
        self._driver: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start driver and browser. Raises BrowserError."""
        program = shutil.which("chromedriver")
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None or browser is None:
            raise BrowserError("Chromium and its driver are needed: apt-get install chromium chromium-driver")
        self._profile = tempfile.TemporaryDirectory(prefix="azaion-browser-", ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            [program, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._base = f"http://127.0.0.1:{self._port(self._driver)}"
        width, height = self._size
        options = {
            "binary": browser,
            "args": [*_FLAGS, f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"],
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{made['sessionId']}"
        self.emulate(width, height, dark=self._dark)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._driver is not None:
            try:
                if self._session:
                    self._call("DELETE", self._session)
            finally:
                self._driver.terminate()
                self._driver.wait(START_TIMEOUT_S)
                if self._driver.stdout is not None:
                    self._driver.stdout.close()
                self._profile.cleanup()

    def emulate(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give pages a window of this size, and a preference of colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        preference = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [preference]})

    def devtools(self, command: str, parameters: Mapping[str, Any]) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def click(self, selector: str) -> None:
        """Click on the one element that a CSS selector finds."""
        self._call("POST", f"{self._session}/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element, in place of what it holds."""
        element = self._find(selector)
        self._call("POST", f"{self._session}/element/{element}/clear", {})
        self._call("POST", f"{self._session}/element/{element}/value", {"text": text})

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in a file field."""
        self._call("POST", f"{self._session}/element/{self._find(selector)}/value", {"text": str(path)})

    def press(self, keys: str) -> None:
        """Press keys one after the other, wherever the focus is; WebDriver's code points stand for named ones."""
        actions = [
            step for key in keys for step in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})
        ]
        self._call("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def text(self, selector: str) -> str:
        """Return what an element shows."""
        return str(self._call("GET", f"{self._session}/element/{self._find(selector)}/text"))

    def run(self, script: str) -> Any:
        """Run a script in the page, in its driver's world, and return what it returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def wait(self, found: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until `found` answers something true. Raises BrowserError naming `what`."""
        give_up = time.monotonic() + timeout_s
        while not found():
            if time.monotonic() > give_up:
                raise BrowserError(f"Not within {timeout_s:g} s: {what}")
            time.sleep(POLL_S)

    def wait_for_text(self, selector: str, text: str, timeout_s: float = WAIT_S) -> None:
        """Wait until an element shows a text somewhere in it."""
        self.wait(lambda: text in self.text(selector), f"{selector} shows {text!r}", timeout_s)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the whole page, or of what the window shows (PNG)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = self.devtools("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(picture["data"]))

    def requested(self) -> list[str]:
        """Return the addresses that pages asked for since the last call, pages of the browser's own left out."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:", "chrome:", "about:"))]

    def complaints(self) -> list[str]:
        """Return what the browser complained of since the last call (a broken policy, an error of a script)."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [str(entry["message"]) for entry in entries]

    def _find(self, selector: str) -> str:
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = requests.request(method, self._base + path, json=body, timeout=CALL_TIMEOUT_S)
        value = answer.json()["value"]
        if answer.status_code != 200:
            raise BrowserError(f"{path.rpartition('/')[2]}: {value.get('message', '')[:500]}")
        return value

    def _port(self, driver: subprocess.Popen[str]) -> int:
        for line in driver.stdout or ():
            if match := re.search(r"started successfully on port (\d+)", line):
                return int(match[1])
        raise BrowserError("chromedriver did not start")
