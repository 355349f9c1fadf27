"""A report as one HTML file, which needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2330; background: #fafafa;
  max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .25rem; }}
h2 {{ font-size: 1.1rem; margin: 2.5rem 0 .5rem; }}
p {{ max-width: 46rem; margin: .25rem 0 .75rem; color: #4a5263; }}
figure {{ margin: 0; background: #fff; border: 1px solid #e3e6ec; border-radius: 8px;
  padding: .75rem; overflow-x: auto; }}
figure svg {{ display: block; max-width: 100%; height: auto; margin: auto; }}
div.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; background: #fff;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: .4rem .8rem; border-bottom: 1px solid #e3e6ec; text-align: right;
  white-space: nowrap; vertical-align: top; }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0;
  background: #fff; }}
thead th {{ color: #4a5263; font-weight: 600; }}
small {{ color: #6b7385; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of the parts made below."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(words)}</p>"


def figure(name: str, about: str, svg: str) -> str:
    """A picture, an SVG file's content, under its name and with a sentence about it."""
    element = svg[svg.index("<svg") :]
    return f"<h2>{html.escape(name)}</h2>\n{text(about)}\n<figure>{element}</figure>"


def table(name: str, about: str, rows: Sequence[Sequence[str]]) -> str:
    """A table under its name; the first row is its head. A line break starts a note."""
    head, *others = ([_cell(cell) for cell in row] for row in rows)
    lines = "\n".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in others)
    return (
        f"<h2>{html.escape(name)}</h2>\n{text(about)}\n"
        f'<div class="table"><table><thead><tr><th>{"</th><th>".join(head)}</th></tr>'
        f"</thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def _cell(words: str) -> str:
    first, *notes = words.split("\n")
    notes = [f"<br><small>{html.escape(note)}</small>" for note in notes]
    return html.escape(first) + "".join(notes)
