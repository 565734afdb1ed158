"""The chat page in a real browser, against a scripted backend: a server of its own, tabs, and what a person does in one."""

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from nanochat_serve import Finished, ServerSettings, TextDelta, create_app
from nanochat_serve.testing import ScriptedBackend

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
]
HANG_MS = 180_000
"""The one limit on everything that is waited for: a guard against hangs, not a measure."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/page/test_page_" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"))


class Server:
    """The app on a port of its own, on a thread of its own."""

    def __init__(self, prepare: Callable[[web.Application], None], settings: ServerSettings | None) -> None:
        self.backend = ScriptedBackend()
        self._app = create_app(self.backend, settings)
        prepare(self._app)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        async def start() -> web.AppRunner:
            runner = web.AppRunner(self._app, handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            return runner

        runner = self._loop.run_until_complete(start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def answers(
        self, text: str, *, reason: str = "stop", pause_s: float = 0.0, tokens: int = 5, prompt: int = 9
    ) -> None:
        """From now on, word by word."""
        words = [TextDelta(word + " ") for word in text.split(" ")]
        self.backend.events = [*words, Finished(reason=reason, prompt_tokens=prompt, completion_tokens=tokens)]
        self.backend.pause_s = pause_s

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class Tab:
    """A tab of the browser, with what a person does in it; all else is playwright's page."""

    def __init__(self, page: Any, url: str, *, wait: bool = True) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto(url)
        if wait:
            page.wait_for_selector(".state")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def say(self, text: str, *, wait: bool = True) -> None:
        last = "[...document.querySelectorAll('.message.user')].at(-1)?.dataset.key"
        before = self.page.evaluate(last)
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        if wait:
            while self.page.evaluate(last) == before:
                self.page.wait_for_timeout(5)
            self.page.wait_for_selector("#log > :last-child:not(.user):not(.busy):not(.empty):not(.calm)")
            self.page.wait_for_selector("#stop", state="hidden")

    def again(self) -> None:
        """Loads the page anew."""
        self.page.reload()
        self.page.wait_for_selector(".state")

    @property
    def said(self) -> list[str]:
        """What stands in the conversation, message by message."""
        return self.page.locator(".message .content").all_inner_texts()

    def play(self, *events: str | dict[str, Any]) -> list[dict[str, Any]]:
        """Has the next answers stand for the server's, texts or whole chunks; returns what is asked, a list that grows."""
        asked: list[dict[str, Any]] = []
        lines = [event if isinstance(event, dict) else {"choices": [{"delta": {"content": event}}]} for event in events]
        end = "" if "error" in lines[-1] else "data: [DONE]\n\n"
        body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + end

        def answer(route: Any) -> None:
            asked.append(json.loads(route.request.post_data))
            route.fulfill(status=200, content_type="text/event-stream", body=body)

        self.page.unroute("**/chat/completions")
        self.page.route("**/chat/completions", answer)
        return asked

    def reply(self, path: str, value: Any) -> list[dict[str, Any] | None]:
        """The same for JSON."""
        asked: list[dict[str, Any] | None] = []

        def answer(route: Any) -> None:
            asked.append(route.request.post_data_json)
            route.fulfill(json=value)

        self.page.route(path, answer)
        return asked


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, which end with the test."""
    running: list[Server] = []

    def start(prepare: Callable[[web.Application], None] = lambda app: None, **settings: Any) -> Server:
        running.append(Server(prepare, ServerSettings(**settings)))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture(scope="module")  # while it lives no other test could run an event loop
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tabs(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens tabs: `tabs(url)` in a browser of their own, with its options, `tabs(url, beside=tab)` in that tab's."""
    contexts = []

    def open_tab(url: str, *, beside: Tab | None = None, script: str = "", wait: bool = True, **options: Any) -> Tab:
        if beside is None:
            contexts.append(browser.new_context(**options))
            contexts[-1].set_default_timeout(HANG_MS)
        page = beside.context.new_page() if beside else contexts[-1].new_page()
        if script:
            page.add_init_script(script)
        return Tab(page, url, wait=wait)

    yield open_tab
    for context in contexts:
        context.close()


@pytest.fixture
def page(server: Server, tabs: Callable[..., Tab]) -> Tab:
    return tabs(server.url)


@pytest.fixture
def phone(server: Server, tabs: Callable[..., Tab]) -> Tab:
    """A small screen, touched."""
    return tabs(server.url, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
