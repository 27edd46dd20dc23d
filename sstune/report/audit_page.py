"""A masking audit as one self-contained HTML page, for screen and print."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sstune.metric import metric_named
from sstune.report.audit import VERDICTS, Check, basis, remarks, table_of
from sstune.report.audit_figures import AttackRecord, attack_records, audit_figures, clean_of
from sstune.report.rows import eps_value
from sstune.report.styles import printable
from sstune.report.variants import joined, labels_of
from sstune.row import Row, is_counted, metric_of
from sstune.schema.audit import Verdict

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --rule: #ccc; --soft: #666;
  --masked: #b3261e; --sound: #1b6e3c; --open: #8a5a00; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #161616; --rule: #444; --soft: #a0a0a0;
    --masked: #ff8a80; --sound: #7fd69b; --open: #f0c060; }
  figure svg { filter: invert(0.9) hue-rotate(180deg); }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.1rem; font-weight: 600; margin: 0; }
h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.8rem; font-weight: 700; margin: .3rem 0 0; }
.masked, .error { color: var(--masked); }
.sound { color: var(--sound); }
.open, .warn { color: var(--open); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .7rem .2rem 0;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums;
  white-space: pre-line; }
figure { margin: 1rem 0; }
figure svg, figure img { max-width: 100%; height: auto; }
figcaption, .soft { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .85rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""
PICTURE = "Clean images, adversarial images, and their magnified difference."
RANKED_PICTURE = "Queries, clean and adversarial, with the database images that are nearest to them."
CLASSES = {Verdict.masked: "masked", Verdict.not_masked: "sound", Verdict.inconclusive: "open"}


def audit_page(row: Row, images: bytes | None = None) -> str:
    """The HTML page of an audit's row, without references to other files.

    Args:
        images: a PNG of clean and adversarial images: :mod:`sstune.report.grid`, or of retrieval
            :mod:`sstune.report.nearest`.
    """
    audit, labels = row["audit"], labels_of(row)
    name = joined(labels["backbone"], labels["rule"], labels["scale"])
    verdict, because = Verdict(audit["verdict"]), basis(audit)
    parts = [
        f"<h1>Masking audit: {escape(name)}, {escape(labels['dataset'])}</h1>",
        f'<p class="verdict {CLASSES[verdict]}">{escape(verdict)}</p>',
        f"<p>{escape(VERDICTS[verdict].capitalize())}{escape(f' ({because})') if because else ''}.</p>",
        "<h2>Checks</h2>",
        _checks(audit["checks"]),
        *(f'<p class="soft">{escape(text)}</p>' for text in remarks(audit)),
        "<h2>Curves</h2>",
        *(
            _figure(_svg(figure, f"f{number}-"), caption)
            for number, (caption, figure) in enumerate(audit_figures(row))
        ),
    ]
    if images is not None:
        picture = f'<img alt="" src="data:image/png;base64,{base64.b64encode(images).decode()}">'
        parts += [
            "<h2>Images</h2>",
            _figure(picture, PICTURE if is_counted(clean_of(row)) else RANKED_PICTURE),
        ]
    parts += [
        f"<h2>{_heading(metric_of(clean_of(row)))} in % (95 % interval)</h2>",
        _figures(row),
        "<h2>Provenance</h2>",
        _provenance(row),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(verdict)}: {escape(name)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _checks(checks: Sequence[Check]) -> str:
    classes = [check["status"].replace(" ", "-") for check in checks]
    header, *lines = table_of(checks)
    return _table(header, lines, classes)


def _heading(metric: str) -> str:
    """A metric at the beginning of a heading: "Accuracy", "mAP@all"."""
    label = metric_named(metric).label
    return escape(label.capitalize() if label.islower() else label)


def _figures(row: Row) -> str:
    """A line for each attack and gradient, a column for each eps: the metric and its 95 % interval."""
    records = attack_records(row)
    each_eps = sorted({one.eps for one in records}, key=lambda eps: eps_value(row, eps))
    lines = []
    for label in dict.fromkeys(one.label for one in records):
        series = {one.eps: one for one in records if one.label == label}
        n = ", ".join(dict.fromkeys(str(one.n) for one in series.values()))
        lines.append([label, n, *(_share(series[eps]) if eps in series else "" for eps in each_eps)])
    return _table(["attack", "n", *each_eps], lines)


def _share(one: AttackRecord) -> str:
    low, high = one.interval
    interval = f"({100 * low:.1f} to {100 * high:.1f})".replace(" ", "\N{NO-BREAK SPACE}")
    same = "" if one.by_pgd is None else f"\nPGD on the same: {100 * one.by_pgd / one.n:.1f}"
    return f"{100 * one.correct / one.n:.1f}\n{interval}{same}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], classes: Iterable[str] = ()) -> str:
    """``classes``: CSS class of each line's last cell."""
    out = [_line("th", header, "")]
    out += [_line("td", line, kind) for line, kind in itertools.zip_longest(lines, classes, fillvalue="")]
    return "<table>\n" + "\n".join(out) + "\n</table>"


def _line(tag: str, cells: Sequence[str], kind: str) -> str:
    *first, last = (escape(cell) for cell in cells)
    mark = f' class="{escape(kind)}"' if kind else ""
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in first)}<{tag}{mark}>{last}</{tag}></tr>"


def _figure(picture: str, caption: str) -> str:
    return f"<figure>\n{picture}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _svg(figure: Figure, prefix: str) -> str:
    """A figure as an SVG element; its ids start with ``prefix``, since a page holds several figures."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sstune", "svg.fonttype": "none"}):
        printable(figure).savefig(text, format="svg", bbox_inches="tight", transparent=True)
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}", svg[svg.index("<svg") :])
    return svg.strip()


def _provenance(row: Row) -> str:
    data, git = row["datasets"]["test"], row["git"]
    changes = " (with changes)" if git["dirty"] else ""
    entries = {
        "identity": row["identity"],
        "network": " → ".join(map(_ancestor, row["lineage"])),
        "dataset": f"{row['config']['dataset']['label']}, {data['n']} test images, sha256 {data['digest']}",
        "attacked": f"{clean_of(row)['n']} of them, sha256 {data['attacked']}",
        "commit": f"{git['commit']}{changes}" if git["commit"] else "installed, no checkout",
        "versions": ", ".join(f"{name} {version}" for name, version in row["versions"].items()),
        "device": f"{row['device']}, {row['seconds']:.0f} s",
        "settings": json.dumps({key: row["config"].get(key) for key in ("attack", "audit", "seed")}),
    }
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def _ancestor(ancestor: Mapping[str, Any]) -> str:
    if "identity" in ancestor:
        return f"{ancestor['command']} {ancestor['identity'][:12]}"
    return f"{ancestor['file']} (sha256 {ancestor['sha256'][:12]})"
