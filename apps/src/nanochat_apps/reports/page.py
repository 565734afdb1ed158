"""A page of HTML that needs nothing beside itself: tables, and pictures drawn with matplotlib."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .9rem; text-align: left; border-bottom: 1px solid #d8dee4 }
td.n { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 }
svg { max-width: 100%; height: auto }
.user { color: #0550ae }
.assistant { margin-bottom: .6rem }
details { margin: .4rem 0 }
.warning { color: #cf222e; font-weight: bold }
"""


def write_page(folder: Path, name: str, title: str, sections: Sequence[str]) -> Path:
    """One HTML file that needs nothing beside itself."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / name
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        + "\n".join(sections),
        encoding="utf-8",
    )
    return page


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def cell(value: object) -> str:
    kind = ' class="n"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{html.escape(f'{value:,}' if kind else str(value))}</td>"


def as_svg(figure: Figure) -> str:
    """The picture as an element for a page; the same bytes for the same picture."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
