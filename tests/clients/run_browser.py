"""The report in a real browser: `python -m tests.clients.run_browser CHROMIUM DIRECTORY RESULT.json [PAGE.html ...]`.

Pages of its own making (every section, a very large model, hostile names), then those that are named, are opened at
the width of a desk, a tablet and a phone, light and dark. What page_faults.js finds, any word on the console, any
request and any dialog is a fault. Pictures of each, and what a printer would get, go to DIRECTORY, for a person to look
at.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from minitron_cli.report.page import render
from minitron_cli.report.sections import view
from tests.unit.report.hostile import HOSTILE
from tests.unit.report.sample import large, sample

FAULTS = Path(__file__).with_name("page_faults.js")
MAX_BYTES = 1_000_000
WIDTHS = {"desk": (1400, 900), "tablet": (820, 1180), "phone": (390, 844)}
TOLD = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening"}


def main(chromium: str, root: Path, result: Path, *others: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    names = iter(HOSTILE * 100)
    own = {"every-section": sample(), "large": large(), "hostile": sample(lambda _: next(names))}
    pages = {root / f"{name}.html": render(view(data)) for name, data in own.items()}
    for path, html in pages.items():
        path.write_text(html)
    with _browser(chromium) as browser:
        version = browser.ask("Browser.getVersion")["product"]
        rows = [row for path in (*pages, *others) for row in _looks(browser, path.resolve(), root)]
    result.write_text(json.dumps({"versions": {"browser": version}, "rows": rows}, indent=2) + "\n")
    for row in rows:
        print(row["page"], row["view"], f"{row['bytes']:,} bytes", *(row["faults"] or ["fine"]), sep="  ")
    sys.exit(any(row["faults"] for row in rows))


def _looks(browser: "_Browser", page: Path, root: Path) -> Iterator[dict[str, Any]]:
    for width, size in WIDTHS.items():
        for scheme in ("light", "dark"):
            view = f"{width}, {scheme}"
            faults = _faults(browser, page, size, scheme, root / f"{page.stem}-{width}-{scheme}.png")
            yield {"page": page.stem, "view": view, "bytes": page.stat().st_size, "faults": faults}
    browser.print(root / f"{page.stem}.pdf")


def _faults(browser: "_Browser", page: Path, size: tuple[int, int], scheme: str, picture: Path) -> list[str]:
    told = browser.open(page.as_uri(), size, scheme)
    faults = [f"the page says {event}" for event in told]
    if page.stat().st_size > MAX_BYTES:
        faults.append(f"the page has more than {MAX_BYTES:,} bytes")
    faults += browser.evaluate(FAULTS.read_text())
    browser.photograph(picture)
    return faults


class _Browser:
    """One tab, spoken to over two pipes."""

    def __init__(self, to: BinaryIO, answers: BinaryIO) -> None:
        self._to, self._answers = to, answers
        self._count, self._session, self._events = 0, {}, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        call = {"id": self._count, "method": method, "params": params} | self._session
        self._to.write(json.dumps(call).encode() + b"\0")
        self._to.flush()
        while (answer := self._next()).get("id") != self._count:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser is gone"
            message += byte
        return json.loads(message)

    def open(self, url: str, size: tuple[int, int], scheme: str) -> list[str]:
        """What the page said or asked for while it loaded, besides itself."""
        width, height = size
        is_phone = width < 500
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.ask("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
        return [text for event in self._events if (text := _fault(event, url))]

    def evaluate(self, expression: str) -> Any:
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def photograph(self, path: Path) -> None:
        picture = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=self._whole_page())
        path.write_bytes(base64.b64decode(picture["data"]))

    def _whole_page(self) -> dict[str, float]:
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def print(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]))


def _fault(event: dict[str, Any], url: str) -> str | None:
    """The event in words, if the page should not have caused it."""
    if event["method"] in TOLD:
        return json.dumps(event["params"])[:200]
    if event["method"] == "Network.requestWillBeSent":
        asked = event["params"]["request"]["url"]
        return None if asked == url or re.match(r"data:image/png;", asked) else f"a request for {asked[:200]}"
    return None


@contextmanager
def _browser(chromium: str) -> Iterator[_Browser]:
    """A browser with no profile and no sandbox, which needs rights that a container may not have."""
    its_input, to = os.pipe()
    answers, its_output = os.pipe()
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
    command = ["sh", "-c", f'exec "$0" "$@" 3<&{its_input} 4>&{its_output}', chromium, *options]
    process = subprocess.Popen(command, pass_fds=(its_input, its_output), stderr=subprocess.DEVNULL)
    os.close(its_input), os.close(its_output)
    try:
        with os.fdopen(to, "wb") as writer, os.fdopen(answers, "rb") as reader:
            yield _Browser(writer, reader)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
