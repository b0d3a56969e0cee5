"""Drive a headless Chromium through the DevTools protocol on a pipe: no port, no driver program, no network."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """Return the path of a Chromium, from the variable SKYLOOM_CHROMIUM or the search path, or None."""
    named = os.environ.get("SKYLOOM_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A browser with one page. Use it as a context manager."""

    def __init__(self, program: str, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.events: list[dict] = []
        self._replies: queue.Queue = queue.Queue()
        self._last = 0
        self.profile = tempfile.mkdtemp(prefix="skyloom-chromium-")
        read_commands, self._write = os.pipe()
        self._read, write_replies = os.pipe()

        def descriptors() -> None:  # the protocol wants the pipes as descriptors 3 and 4
            first, second = os.dup(read_commands), os.dup(write_replies)
            os.dup2(first, 3, inheritable=True)
            os.dup2(second, 4, inheritable=True)

        command = [program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            command,
            preexec_fn=descriptors,  # noqa: PLW1509  # it only duplicates descriptors
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_replies)
        threading.Thread(target=self._listen, daemon=True).start()
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(10)
        os.close(self._write)
        shutil.rmtree(self.profile, ignore_errors=True)

    def _listen(self) -> None:
        with os.fdopen(self._read, "rb") as stream:
            rest = b""
            while block := stream.raw.read(65536):
                *messages, rest = (rest + block).split(b"\0")
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._replies.put(message)
                    else:
                        self.events.append(message)
        self._replies.put({"id": None, "error": {"message": "the browser has ended"}})

    def call(self, method: str, **parameters: object) -> dict:
        """Send one command and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            try:
                reply = self._replies.get(timeout=self.timeout)
            except queue.Empty:
                raise RuntimeError(f"{method}: no answer within {self.timeout} s") from None
            if reply["id"] in (self._last, None):
                break
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def open(self, url: str, width: int = 1400, height: int = 900, *, dark: bool = False, scale: float = 1) -> None:
        """Open a page in a window of the given size, and wait until its script has run."""
        window = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **window)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && document.documentElement.dataset.ready === 'yes'")

    def run(self, expression: str) -> object:
        """Evaluate JavaScript (promises are awaited) and return its value."""
        reply = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            try:
                if self.run(expression):
                    return
            except RuntimeError as error:
                if "context" not in str(error):  # the old page went away while it was asked
                    raise
            time.sleep(0.05)
        raise RuntimeError(f"not true within {self.timeout} s: {expression}")

    def click(self, selector: str) -> None:
        """Scroll an element into sight and click its middle with the mouse."""
        x, y = self.run(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "nearest"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        """Send a mouse event (mouseMoved, mousePressed, mouseReleased, mouseWheel) at window coordinates."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def key(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Escape": 27}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def problems(self) -> list[str]:
        """Return console errors and warnings, uncaught exceptions and log entries since the page was opened."""
        found = []
        for event in self.events:
            what, parameters = event["method"], event["params"]
            if what == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            elif what == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                found.append(str(parameters["args"]))
            elif what == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Return the addresses of all requests since the page was opened, data URIs left out."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [parameters["request"]["url"] for parameters in sent]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        """Write a picture of the window, or of the full page."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(picture["data"]))
