"""What other pages in the same browser can do to the server."""

DRIVE_BY = """async (url) => {
  const body = JSON.stringify({ messages: [{ role: "user", content: "x" }], prompt: "x" });
  for (const path of ["chat/completions", "v1/chat/completions", "v1/completions"]) {
    for (const type of ["text/plain", "application/json"]) {
      await fetch(url + path, { method: "POST", mode: "no-cors", headers: { "Content-Type": type }, body }).catch(() => {});
      await fetch(url + path, { method: "POST", headers: { "Content-Type": type }, body }).catch(() => {});
    }
  }
}"""


def test_a_foreign_page_gets_no_answer(serve, browser):
    """By fetch, by a form without scripts, and under a name of its own that leads to this machine."""
    server, foreign = serve(), serve()
    page = browser.new_page()
    try:
        page.goto(foreign.url)
        page.evaluate(DRIVE_BY, server.url)
        form = '<form method=post enctype=text/plain><input name=\'{"prompt":"x","a":"\' value=\'"}\'></form>'
        page.set_content(form)
        page.evaluate(
            "(url) => { document.forms[0].action = url; document.forms[0].submit(); }", server.url + "v1/completions"
        )
        page.wait_for_load_state()
        port = server.url.rstrip("/").rpartition(":")[2]
        rebound = page.goto(f"http://evil.example:{port}/")
        assert rebound.status == 403
        page.evaluate(DRIVE_BY, f"http://evil.example:{port}/")
        assert server.backend.requests == []
        page.goto(server.url)
        page.evaluate(DRIVE_BY, server.url)  # the same from its own page
        assert len(server.backend.requests) == 3  # what is no JSON is refused there too, and no-cors cannot send JSON
    finally:
        page.close()
