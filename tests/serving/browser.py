"""A real browser for the tests of the page, and the page served from a thread."""

import contextlib
import io
import os
import shutil
import socket
import threading
import time

import numpy as np
from PIL import Image

from eqjax.serving import server
from eqjax.serving.description import describe

# Names of browsers that Playwright's protocol drives, as Linux distributions install them.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_INSTALL = "install one with `make browser` (apt-get install chromium), or name it in the environment variable CHROMIUM"
# Collects what a policy refuses, which the console shows in words of its own.
_WATCH = "addEventListener('securitypolicyviolation', (e) => console.error('refused: ' + e.violatedDirective));"


def executable():
    """Returns the path of a browser.

    Raises:
      AssertionError: there is none; the message says how to install it.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    assert found, f"these tests drive Chromium, which is missing: {_INSTALL}."
    return found


@contextlib.contextmanager
def launched():
    """Yields a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(engine, thumbnails=(), **options):
    """Yields the address of the page around an engine."""
    import uvicorn

    app = server.create_app(engine, describe(engine, "stripes", {}), thumbnails, server.ServerOptions(**options))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join()
        listener.close()


class Visit:
    """A visitor's page; everything that goes wrong in it is in `errors`."""

    def __init__(self, browser, address, *, size=(1200, 800), **options):
        self.context = browser.new_context(viewport=dict(width=size[0], height=size[1]), **options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address.rstrip("/").split("#")[0])
        self.page = self.context.new_page()
        self.page.add_init_script(_WATCH)
        self.errors = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#classes button")
        self.page.fill("#pace", "10")
        self.page.evaluate("document.activeElement.blur()")

    @property
    def length(self):
        """Pixels of the image so far."""
        text = self.page.inner_text("#length").split("×")[0]
        return int(text.replace(",", "") or 0)

    def wait_for(self, condition, seconds=40):
        """Waits until a function of this process returns something true."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"waited in vain; the page says {self.errors}"
            self.page.wait_for_timeout(50)
        return found

    def wait_for_length(self, pixels):
        """Waits until the image is so long."""
        self.wait_for(lambda: self.length >= pixels)

    def saved(self):
        """Returns the pixels of the file that the page saves."""
        with self.page.expect_download() as download:
            self.page.click("#save")
        with Image.open(download.value.path()) as image:
            assert image.info["Comment"].startswith("eqjax http")
            return np.asarray(image)

    def link(self):
        """Returns the link that the page copies."""
        self.page.click("#share")
        self.page.wait_for_selector("#toast:not([hidden])")
        return self.page.evaluate("navigator.clipboard.readText()")

    def drop(self, pixels):
        """Drops a photograph on the page."""
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        self.page.evaluate(
            """(bytes) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], "photo.png", { type: "image/png" }));
              for (const name of ["dragenter", "dragover", "drop"]) {
                const about = { dataTransfer: data, bubbles: true, cancelable: true };
                document.body.dispatchEvent(new DragEvent(name, about));
              }
            }""",
            list(file.getvalue()),
        )

    def close(self):
        """Leaves."""
        self.context.close()
