"""What other pages in the same browser can do to the server."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DRIVE_BY = """async (url) => {
  const body = JSON.stringify({ messages: [{ role: "user", content: "x" }], prompt: "x" });
  for (const path of ["chat/completions", "v1/chat/completions", "v1/completions"]) {
    for (const type of ["text/plain", "application/json"]) {
      await fetch(url + path, { method: "POST", mode: "no-cors", headers: { "Content-Type": type }, body }).catch(() => {});
      await fetch(url + path, { method: "POST", headers: { "Content-Type": type }, body }).catch(() => {});
    }
  }
}"""


class ForeignPage(BaseHTTPRequestHandler):
    """One without our page's Content-Security-Policy, which would keep it from trying."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(
            b'<form method=post enctype=text/plain><input name=\'{"prompt":"x","a":"\' value=\'"}\'></form>'
        )

    def log_message(self, *_: object) -> None:
        pass


def test_a_foreign_page_gets_no_answer(server, browser):
    """By fetch, by a form without scripts, and under a name of its own that leads to this machine."""
    foreign = ThreadingHTTPServer(("127.0.0.1", 0), ForeignPage)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{foreign.server_port}/")
        page.evaluate(DRIVE_BY, server.url)
        assert server.backend.requests == []
        with page.expect_navigation():
            page.evaluate(
                "(url) => { document.forms[0].action = url; document.forms[0].submit(); }",
                server.url + "v1/completions",
            )
        assert "application/json" in page.content()  # what the server wants instead
        assert server.backend.requests == []
        port = server.url.rstrip("/").rpartition(":")[2]
        assert page.goto(f"http://evil.example:{port}/").status == 403
        page.goto(server.url)
        page.evaluate(DRIVE_BY, server.url)  # the same from its own page
        assert len(server.backend.requests) == 3  # what is no JSON is refused there too, and no-cors cannot send JSON
    finally:
        page.close()
        foreign.shutdown()
