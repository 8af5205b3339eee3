"""The HTML report of a rehearsal: one file with everything in it, readable without scripts, in light and in dark.

figures     what differs, stream by stream
charts      outputs over the stream's time, put out and rehearsed, on one scale; with the numbers as text
list        the first differences, each with the command that explains it, where one does
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from secondpass.cli import text
from secondpass.cli.shapes import DifferenceReport, RateReport, RehearsalReport, line

WIDTH, HEIGHT = 720, 200
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 26

_STYLE = """\
:root { color-scheme: light dark; --ink: #1f2937; --soft: #5b6676; --line: #d5dbe3; --ground: #ffffff; --card: #f6f8fa;
        --was: #64748b; --now: #c2410c; --gone: #b42318; --new: #15803d; --changed: #a15c00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #9aa7b8; --line: #334155; --ground: #0d1117; --card: #161d29;
          --was: #94a3b8; --now: #fb923c; --gone: #f97066; --new: #4ade80; --changed: #fbbf24; } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p, ul { margin: .3rem 0; } .soft { color: var(--soft); }
code, pre, .event { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--soft); } .n { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 1.2rem; padding: .8rem; background: var(--card); border-radius: 8px; }
figcaption { display: flex; flex-wrap: wrap; gap: 1.2rem; margin-bottom: .4rem; }
.key::before { content: ""; display: inline-block; width: 1.1em; height: .2em; margin-right: .45em; vertical-align: middle; background: currentColor; }
.was { color: var(--was); } .now { color: var(--now); }
.gone { color: var(--gone); } .new { color: var(--new); } .changed { color: var(--changed); }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--soft); }
svg .axis { stroke: var(--line); } svg .curve { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
svg .curve.was { stroke-dasharray: 5 3; }
summary { cursor: pointer; color: var(--soft); }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 2rem; } table { font-size: .85em; } th, td { padding: .3rem .25rem; }
  figure { padding: .6rem .5rem; } svg text { font-size: 17px; } svg .curve { stroke-width: 2.4; } }"""


def page(report: RehearsalReport) -> str:
    """A rehearsal as an HTML document."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: RehearsalReport) -> Iterator[str]:
    title = f"{report.app}: a rehearsal"
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>\n{_STYLE}\n</style></head><body><main>"
    yield f"<h1>{escape(title)}</h1>"
    told = text.plural(report.differences, "difference") if report.differences else "no difference"
    where = text.positions(report.begin, report.end)
    until = (
        ""
        if report.stopped is None
        else f", until the changed chain stops at position {text.count(report.end)}"
    )
    yield (
        f'<p>{where[:1].upper()}{where[1:]}: <strong id="told">{told}</strong> from what was put out{until}.</p>'
    )
    if report.changes:
        yield (
            "<h2>What was changed</h2><ul>"
            + "".join(f"<li><code>{escape(c)}</code></li>" for c in report.changes)
            + "</ul>"
        )
    if report.stopped is not None:
        yield f'<p class="gone">Stopped: {escape(report.stopped)}</p>'
    yield from _figures(report)
    yield from _charts(report)
    yield from _differences(report)
    if report.notes:
        yield ("<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>")
    repeated = ""
    if report.repeated:
        repeated = f"; unchanged, the first {text.plural(report.repeated, 'output')} came out as recorded"
    yield (
        f'<p class="soft">{text.plural(report.end - report.begin, "record")} in {text.duration(report.seconds)}{repeated}. '
        f"Store: <code>{escape(report.store)}</code></p></main></body></html>"
    )


def _figures(report: RehearsalReport) -> Iterator[str]:
    heads = ("stream", "put out", "rehearsed", "same", "gone", "new", "changed")
    yield '<h2>Outputs</h2><div class="scroll"><table id="streams"><thead><tr>'
    yield "".join(f'<th scope="col"{"" if i == 0 else _N}>{h}</th>' for i, h in enumerate(heads))
    yield "</tr></thead><tbody>"
    for s in report.streams:
        numbers = (s.recorded, s.rehearsed, s.same, s.gone, s.new, s.changed)
        cells = "".join(f"<td{_N}>{text.count(n)}</td>" for n in numbers)
        yield f'<tr><th scope="row">{escape(s.name)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


_N = ' class="n"'


# ---------------------------------------------------------------- charts


def _charts(report: RehearsalReport) -> Iterator[str]:
    begin, width_s = report.rates_begin, report.rates_width_s
    shown = [rate for rate in report.rates if len(rate.recorded) > 1]
    if begin is None or not shown:
        return
    yield f"<h2>Over the stream's time, in steps of {escape(text.duration(width_s))}</h2>"
    for rate in shown:
        yield "<figure><figcaption>"
        yield f'<strong>{escape(rate.stream)}</strong><span class="key was">put out</span>'
        yield '<span class="key now">rehearsed</span></figcaption>'
        yield _chart(rate, begin, width_s)
        yield from _numbers(rate, begin, width_s)
        yield "</figure>"


def _chart(rate: RateReport, begin: float, width_s: float) -> str:
    most = max([*rate.recorded, *rate.rehearsed, 1])
    bins = len(rate.recorded)
    end = begin + width_s * bins
    low = HEIGHT - BOTTOM
    told = f"{rate.stream} over time: {sum(rate.recorded)} put out, {sum(rate.rehearsed)} rehearsed"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">',
        f'<line class="axis" x1="{LEFT}" y1="{low}" x2="{WIDTH - RIGHT}" y2="{low}"/>',
        f'<line class="axis" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{low}"/>',
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{text.count(most)}</text>',
        f'<text x="{LEFT - 6}" y="{low}" text-anchor="end">0</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(text.stream_time(begin))}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(text.stream_time(end))}</text>',
        f'<path class="curve was" d="{_path(rate.recorded, most)}"/>',
        f'<path class="curve now" d="{_path(rate.rehearsed, most)}"/>',
        "</svg>",
    ]
    return "".join(parts)


def _path(counts: Sequence[int], most: int) -> str:
    """Steps: each number holds for its stretch of time."""
    wide, high = (WIDTH - LEFT - RIGHT) / len(counts), HEIGHT - TOP - BOTTOM
    points: list[str] = []
    for i, n in enumerate(counts):
        y = TOP + high * (1 - n / most)
        points += [f"{LEFT + i * wide:.1f} {y:.1f}", f"{LEFT + (i + 1) * wide:.1f} {y:.1f}"]
    return "M" + "L".join(points)


def _numbers(rate: RateReport, begin: float, width_s: float) -> Iterator[str]:
    yield '<details><summary>The numbers</summary><div class="scroll"><table><thead><tr><th scope="col">from</th>'
    yield f'<th scope="col"{_N}>put out</th><th scope="col"{_N}>rehearsed</th></tr></thead><tbody>'
    for i, (was, now) in enumerate(zip(rate.recorded, rate.rehearsed, strict=True)):
        at = escape(text.stream_time(begin + i * width_s))
        yield f"<tr><td>{at}</td><td{_N}>{text.count(was)}</td><td{_N}>{text.count(now)}</td></tr>"
    yield "</tbody></table></div></details>"


# ---------------------------------------------------------------- the differences


def _differences(report: RehearsalReport) -> Iterator[str]:
    if not report.first:
        return
    told = "The differences" if report.differences == len(report.first) else "The first differences"
    yield f'<h2>{told}</h2><div class="scroll"><table id="first"><thead><tr><th scope="col">position</th><th scope="col">what</th>'
    yield '<th scope="col">output</th></tr></thead><tbody>'
    for one in report.first:
        yield from _difference(one)
    yield "</tbody></table></div>"


def _difference(one: DifferenceReport) -> Iterator[str]:
    at = "" if one.time is None else f'<br><span class="soft">{escape(text.stream_time(one.time))}</span>'
    stream = "" if one.stream == "main" else f'<br><span class="soft">{escape(one.stream)}</span>'
    yield f'<tr><td>{one.position}{at}</td><td class="{one.kind}">{one.kind}{stream}</td><td>'
    if one.recorded is not None:
        yield f'<div class="event">{escape(line(one.recorded))}</div>'
    if one.rehearsed is not None:
        now = '<span class="soft">now </span>' if one.kind == "changed" else ""
        yield f'<div class="event">{now}{escape(line(one.rehearsed))}</div>'
    explain = "" if one.explain is None else f'<code class="soft">{escape(one.explain)}</code>'
    yield f"{explain}</td></tr>"
