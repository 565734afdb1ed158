"""Takes the README's pictures of the chat page: `uv run python docs/screenshots.py URL` with a server running there."""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
CHATS = (
    ("Tell me about cats.",),
    ("Hello! What is your name?", "What is 37 times 12?", "How many r are in strawberry?"),
)
VIEWS = (("light", "light", 1100, 720), ("dark", "dark", 1100, 720), ("phone", "light", 390, 760))


def main(url: str) -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, scheme, width, height in VIEWS:
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
            page = context.new_page()
            page.goto(url)
            page.evaluate("document.getElementById('temperature').value = '0'")
            for chat in CHATS:
                page.evaluate("document.getElementById('new-chat').click()")
                for question in chat:
                    ask(page, question)
            page.screenshot(path=IMAGES / f"chat-{name}.png")
            context.close()
        browser.close()


def ask(page: Page, question: str) -> None:
    page.fill("#prompt", question)
    page.press("#prompt", "Enter")
    page.wait_for_selector("#stop")
    page.wait_for_selector("#stop", state="hidden", timeout=120_000)


if __name__ == "__main__":
    main(sys.argv[1])
