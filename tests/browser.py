"""Chromium, for the tests that look at pages as a reader sees them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each."""

    def log_message(self, *_) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def opened(address: str, width: int, height: int) -> Iterator[Watched]:
    """A page of Chromium that is to ask for nothing outside of an address."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        yield Watched(page, address)
        browser.close()


class Watched:
    """A page, and what it asked for elsewhere and complained about since it was last asked."""

    def __init__(self, page, address: str) -> None:
        self.page, self.address = page, address
        self._faults: list[str] = []
        page.on("request", self._on_request)
        page.on("requestfailed", lambda request: self._faults.append(f"failed: {request.url}"))
        page.on("response", self._on_response)
        page.on("pageerror", lambda error: self._faults.append(f"error: {error}"))
        page.on("console", self._on_console)

    def _on_request(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self._faults.append(f"asked for {request.url}")

    def _on_response(self, response) -> None:
        if response.status >= 400:
            self._faults.append(f"{response.status}: {response.url}")

    def _on_console(self, message) -> None:
        if message.type == "error":
            self._faults.append(f"console: {message.text}")

    def faults(self) -> list[str]:
        """Requests to elsewhere, failed requests and errors since the last call."""
        found, self._faults = self._faults, []
        return found
