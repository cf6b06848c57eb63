"""The frame of a report: one HTML file without others, light and dark, from 390 pixels on. All text is escaped here."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clipa_eqx.reports.chart_html import chart_style

_STYLE = """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:var(--page);color:var(--ink)}
main{max-width:76rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem;line-height:1.3;margin:.3rem 0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 .6rem}
p{max-width:48rem;margin:.4rem 0;overflow-wrap:anywhere}.small{font-size:.85rem;color:var(--faint)}
a{color:var(--curve-1)}code,pre{font:.85rem/1.45 ui-monospace,monospace}code{overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--panel);border-radius:.4rem;padding:.7rem;margin:.5rem 0}
details{margin:.6rem 0}summary{cursor:pointer}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
td,th{padding:.3rem 1.2rem .3rem 0;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
th{font-weight:400;font-size:.85rem;color:var(--faint);vertical-align:bottom}
td:first-child,th:first-child{text-align:left}td:last-child,th:last-child{padding-right:0}
table.text td,table.text th{text-align:left;overflow-wrap:anywhere}table.text td:first-child{color:var(--faint)}
table.text td:first-child{overflow-wrap:normal}table.runs th,table.runs td:first-child{overflow-wrap:anywhere}
table.runs th,table.runs td{min-width:5rem}table.runs td{white-space:nowrap}
table.runs td:first-child{min-width:5.6rem}
table.runs td:first-child,table.runs td.group,table.runs.text td{white-space:normal}
table.runs.text td{overflow-wrap:anywhere}table.runs.text td:first-child{min-width:8rem}
td.group{font-weight:600;padding-top:.8rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1.5rem 2rem}
"""


class Strong(NamedTuple):
    """A cell of a table whose text is emphasized."""

    text: str


class Group(NamedTuple):
    """A row of a table that is the title of those below it."""

    title: str


Row = Sequence[str | Strong] | Group


def page(title: str, body: Iterable[str], *, style: str = "", reload_seconds: int | None = None) -> str:
    """A complete page.

    Args:
        title: plain text.
        body: parts as HTML.
        style: rules for this page in addition to the common ones.
        reload_seconds: the page loads itself again after this time; None never does.
    """
    again = f"<meta http-equiv=refresh content={reload_seconds}>" if reload_seconds is not None else ""
    complete = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta name=viewport content="width=device-width,initial-scale=1">{again}<title>{text(title)}</title>'
        f"<style>{chart_style()}{_STYLE}{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )
    # The name of a folder may be no UTF-8; Python holds its bytes as characters that cannot be written.
    return complete.encode("utf-8", "replace").decode("utf-8")


def text(value: object) -> str:
    """Any value as text of a page: escaped, and line breaks as spaces.

    >>> text("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(" ".join(str(value).split()))


def table(head: Sequence[str], rows: Iterable[Row], *, kind: str = "") -> str:
    """A table of plain text, which scrolls by itself where it is wider than the page.

    Args:
        head: the first row; empty for none.
        kind: classes of the table: "text" aligns all columns to the left, "runs" breaks long names.
    """
    first = f"<tr>{''.join(f'<th>{text(name)}' for name in head)}</tr>" if head else ""
    lines = "".join(f"<tr>{_cells(row, columns=len(head))}</tr>" for row in rows)
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f"<div class=scroll>{opening}{first}{lines}</table></div>"


def _cells(row: Row, *, columns: int) -> str:
    if isinstance(row, Group):
        return f"<td class=group colspan={columns}>{text(row.title)}"
    return "".join(f"<td><b>{text(cell.text)}</b>" if isinstance(cell, Strong) else f"<td>{text(cell)}" for cell in row)
