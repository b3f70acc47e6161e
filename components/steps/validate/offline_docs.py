"""Offline data docs: Great Expectations' pages without the network.

They name style sheets, scripts and pictures on half a dozen foreign hosts: on a factory network such pages hang and
stand there unstyled. The pages of results need none of the scripts to be read; the index is drawn by them, so it gets
replaced by a plain one.
"""

import html
import re
from pathlib import Path

__all__ = ["make_offline"]

_FOREIGN = re.compile(
    r"""<script\b.*?</script>                               # all of them call what the foreign ones define
    |<link\b[^>]*?href=["'](?:https?:)?//[^>]*>
    |<img\b[^>]*?src=["'](?:https?:)?//[^>]*>""",
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
_STYLE = """<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; color: #222; }
nav ol { display: flex; gap: .6rem; list-style: none; padding: 0; margin: 0; }
nav { height: auto !important; }
table { border-collapse: collapse; margin: .4rem 0 1rem; }
td, th { border: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top; }
th { background: #f4f4f4; }
.badge { background: #eee; border-radius: .3rem; padding: 0 .4rem; font-weight: normal; }
.card { border: 1px solid #ddd; border-radius: .3rem; padding: 0 .8rem; margin-bottom: 1rem; }
.alert, .table-danger { background: #fdecea; }
.sticky { position: static; }
.sticky > .card:first-of-type, .modal, .footer, footer, .cooltip span { display: none; }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #ddd; }
  a { color: #8ab4f8; }
  th, .badge { background: #2a2d31; }
  td, th, .card { border-color: #444; }
  .alert, .table-danger { background: #4a2220; }
}
</style>
</head>"""

_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>What the night's images were checked for</title>
{style}
<body>
<h1>What the night's images were checked for</h1>
<table>
<tr><th>night</th><th>suite</th><th>result</th><th>expectations</th><th>broken</th><th></th></tr>
{rows}
</table>
</body>
</html>
"""


def make_offline(docs: Path) -> None:
    """Take what is foreign out of every page, put a plain style in, and write an index.

    Args:
        docs: Folder of data docs, changed in place; doing it again changes nothing.
    """
    rows = []
    for page in sorted(docs.rglob("*.html")):
        if page == docs / "index.html":
            continue
        text = page.read_text(encoding="utf-8")
        if _STYLE not in text:
            text = _FOREIGN.sub("", text).replace("</head>", _STYLE, 1)
            page.write_text(text, encoding="utf-8")
        place = page.relative_to(docs)
        if place.parts[0] == "validations":
            rows.append(_row(place, text))
    page_text = _INDEX.format(style=_STYLE, rows="\n".join(rows))
    (docs / "index.html").write_text(page_text, encoding="utf-8")


def _row(place: Path, text: str) -> str:
    suite, night = (html.escape(part) for part in place.parts[1:3])
    plain = re.sub(r"<[^>]*>", " ", text)
    figures = [
        found.group(1) if (found := re.search(pattern, plain)) else "-"
        for pattern in (r"Status:\s+(\w+)", r"Evaluated Expectations\s+(\d+)", r"Unsuccessful Expectations\s+(\d+)")
    ]
    cells = "".join(f"<td>{figure}</td>" for figure in figures)
    return (
        f'<tr><td>{night}</td><td><a href="{html.escape(place.as_posix())}">{suite}</a></td>{cells}'
        f'<td><a href="expectations/{suite}.html">expectations</a></td></tr>'
    )
