"""Takes the pictures of the chat page, one of them moving: `uv run python docs/screenshots.py URL`, with a server there."""

import os
import shutil
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
CHATS = (
    ("Tell me about cats.",),
    ("Hello! What is your name?", "What is 37 times 12?", "How many r are in strawberry?"),
)
VIEWS = (("light", "light", 1100, 720), ("dark", "dark", 1100, 720), ("phone", "light", 390, 760))
ANSWER_MS = 120_000
FRAME_MS = 150


def main(url: str) -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, scheme, width, height in VIEWS:
            page = open_page(browser, url, scheme, width, height)
            for chat in CHATS:
                page.evaluate("document.getElementById('new-chat').click()")
                for question in chat:
                    ask(page, question)
            page.screenshot(path=IMAGES / f"chat-{name}.png")
            page.context.close()
        frames = list(look_inside(open_page(browser, url, "light", 900, 520)))
        frames[0].save(
            IMAGES / "chat-tokens.webp", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, quality=70
        )
        browser.close()


def open_page(browser: Browser, url: str, scheme: str, width: int, height: int) -> Page:
    """A page whose chats are greedy."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    context.set_default_timeout(ANSWER_MS)
    context.add_init_script("""localStorage.setItem("nanochat.settings", '{"temperature": 0}')""")
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(".state.ready")
    return page


def ask(page: Page, question: str) -> None:
    page.fill("#prompt", question)
    page.press("#prompt", "Enter")
    page.wait_for_selector(f".message.user:has-text({question!r}) + .message.assistant:not(.busy) .receipt")


def look_inside(page: Page) -> Iterator[Image.Image]:
    """An answer as tokens by probability, what else was likely, and what follows from another choice."""

    def shot() -> Image.Image:
        return Image.open(BytesIO(page.screenshot())).convert("RGB")

    page.click("#toggle-settings")
    page.check("#show-tokens")
    page.click("#toggle-settings")
    page.fill("#prompt", CHATS[0][0])
    yield shot()
    page.press("#prompt", "Enter")
    while page.locator(".receipt").count() == 0:
        yield shot()
    for _ in range(6):
        yield shot()
    unsure = page.locator(".token:not(.p0)")
    (unsure if unsure.count() else page.locator(".token")).first.click()
    for _ in range(8):
        yield shot()
    page.locator(".choices button:enabled").first.click()
    page.wait_for_selector("text=2/2")
    while page.locator("#stop").is_visible():
        yield shot()
    for _ in range(12):
        yield shot()


if __name__ == "__main__":
    main(sys.argv[1])
