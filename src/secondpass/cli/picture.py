"""The SVG picture of a dependency order: a column for each step, an arrow to each event that waits.

    layers      the events by step; an arrow that passes a step has a place of its own there, so that it runs
                between the boxes
    order       within a layer: sweeps put each one beside what it is joined with
    rows        heights from the order, then evened out; what waits for nothing and has nobody waiting stands below

The file needs nothing beside it: no fonts, no scripts. Its colours follow the reader's light or dark mode.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from secondpass.cli import text
from secondpass.cli.order import keys_told, label
from secondpass.cli.shapes import ScheduledEvent, ScheduleReport

BOX_W, BOX_H = 108, 38
GAP_X, GAP_Y = 62, 14
"""Between two columns, and between two boxes of one."""
PASSING_H = 10
"""The height of an arrow that passes a column."""
MARGIN, TOP, BOTTOM = 28, 96, 58
WIDTH_MIN = 560
SWEEPS = 12
KEYS_COLUMNS = 15

_STYLE = """\
svg { --ink: #1f2937; --soft: #64748b; --line: #94a3b8; --band: #f1f5f9; --box: #ffffff; --edge: #cbd5e1;
      --hot: #c2410c; --hotbox: #fff4ec; --ground: #ffffff;
      font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e5e7eb; --soft: #94a3b8; --line: #64748b; --band: #161d29; --box: #1f2937; --edge: #3b4758;
        --hot: #fb923c; --hotbox: #3a2413; --ground: #0d1117; } }
.ground { fill: var(--ground); } .band { fill: var(--band); }
.title { font-size: 17px; font-weight: 600; fill: var(--ink); }
.said { font-size: 12.5px; fill: var(--soft); }
.step { font-size: 12px; font-weight: 600; fill: var(--soft); text-anchor: middle; }
.box { fill: var(--box); stroke: var(--edge); stroke-width: 1.2; }
.place { font-size: 13px; font-weight: 600; fill: var(--ink); text-anchor: middle; }
.keys { font-size: 11px; fill: var(--soft); text-anchor: middle; font-family: ui-monospace, Menlo, Consolas, monospace; }
.arrow { fill: none; stroke: var(--line); stroke-width: 1.3; } .head { fill: var(--line); }
.hot .box { fill: var(--hotbox); stroke: var(--hot); stroke-width: 1.6; }
.arrow.hot { stroke: var(--hot); stroke-width: 2; } .head.hot { fill: var(--hot); }"""


class _Place:
    """A box, or a passing arrow, in its column."""

    def __init__(self, layer: int, event: ScheduledEvent | None) -> None:
        self.layer = layer
        self.event = event
        self.before: list[_Place] = []
        self.after: list[_Place] = []
        self.y = 0.0
        """Of its middle."""

    @property
    def height(self) -> float:
        return PASSING_H if self.event is None else BOX_H


def picture(report: ScheduleReport, most: int) -> str:
    """The first `most` events as an SVG document."""
    events = report.events[:most]
    layers, arrows = _layers(events)
    _order(layers)
    _rows(layers)
    steps = len(layers)
    inner = steps * BOX_W + max(0, steps - 1) * GAP_X
    width = max(WIDTH_MIN, inner + 2 * MARGIN)
    left = (width - inner) / 2
    low = max((p.y + p.height / 2 for layer in layers for p in layer), default=0.0)
    height = TOP + low + BOTTOM
    size = f'width="{width:.0f}" height="{height:.0f}"'
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {size} role="img" aria-labelledby="t d">',
        f'<title id="t">{_clean(report.task)}: which events wait for which</title>',
        f'<desc id="d">{_clean(_described(report, len(events)))}</desc>',
        f"<style>\n{_STYLE}\n</style>",
        "<defs>",
        *(_arrow_head(name, kind) for name, kind in (("a", "head"), ("h", "head hot"))),
        "</defs>",
        f'<rect class="ground" {size} rx="10"/>',
        f'<text class="title" x="{MARGIN}" y="34">{_clean(report.task)}</text>',
        f'<text class="said" x="{MARGIN}" y="54">{_clean(_described(report, len(events)))}</text>',
    ]
    for i in range(steps):
        x = left + i * (BOX_W + GAP_X)
        band_x, band_w = x - GAP_X / 4, BOX_W + GAP_X / 2
        parts.append(
            f'<rect class="band" x="{band_x:.1f}" y="{TOP - 28}" width="{band_w:.1f}" height="{low + 44:.1f}" rx="8"/>'
        )
        parts.append(f'<text class="step" x="{x + BOX_W / 2:.1f}" y="{TOP - 10}">step {i + 1}</text>')
    chain = set(itertools.pairwise(report.chain))
    drawn = sorted(arrows, key=lambda a: (_number(a[0]), _number(a[-1])) in chain)  # the chain's lie on top
    parts += [_arrow(route, left, hot=(_number(route[0]), _number(route[-1])) in chain) for route in drawn]
    hot = set(report.chain) if steps > 1 else set[int]()
    parts += [
        _box(p, left, hot=p.event.number in hot) for layer in layers for p in layer if p.event is not None
    ]
    legend = "Outlined: the longest chain. Arrows lead to what waits; those that others imply are left out."
    parts.append(f'<text class="said" x="{MARGIN}" y="{height - 14:.1f}">{legend}</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)


def _described(report: ScheduleReport, drawn: int) -> str:
    first = "" if drawn == len(report.events) else f"the first {drawn} of "
    return (
        f"{first}{text.plural(len(report.events), 'event')}, {text.plural(report.steps, 'step')}: "
        f"{report.width:,.1f} at once on average"
    )


# ---------------------------------------------------------------- where things are


def _layers(events: Sequence[ScheduledEvent]) -> tuple[list[list[_Place]], list[list[_Place]]]:
    """The places by step, and for each arrow those that it runs through."""
    layers: list[list[_Place]] = [[] for _ in range(max((e.step for e in events), default=0))]
    boxes = [_Place(e.step - 1, e) for e in events]
    for box in boxes:
        layers[box.layer].append(box)
    arrows: list[list[_Place]] = []
    for event in events:
        for earlier in _needed(events, event):
            route = [boxes[earlier]]
            for layer in range(events[earlier].step, event.step - 1):
                passing = _Place(layer, None)
                layers[layer].append(passing)
                route.append(passing)
            route.append(boxes[event.number])
            for one, other in itertools.pairwise(route):
                one.after.append(other)
                other.before.append(one)
            arrows.append(route)
    return layers, arrows


def _needed(events: Sequence[ScheduledEvent], event: ScheduledEvent) -> list[int]:
    """What an event waits for, without what that waits for itself."""
    implied: set[int] = set()
    found: list[int] = []
    for earlier in sorted(event.waits_for, reverse=True):
        if earlier not in implied:
            found.append(earlier)
        open_ = [earlier]
        while open_:
            for n in events[open_.pop()].waits_for:
                if n not in implied:
                    implied.add(n)
                    open_.append(n)
    return found


def _order(layers: list[list[_Place]]) -> None:
    """Put each place beside what it is joined with, so that few arrows cross."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(SWEEPS):
        forth = sweep % 2 == 0
        for layer in layers if forth else reversed(layers):
            at = {id(p): i for neighbour in layers for i, p in enumerate(neighbour)}

            def middle(place: _Place, forth: bool = forth, at: dict[int, int] = at) -> float:
                joined = place.before if forth else place.after
                return sum(at[id(p)] for p in joined) / len(joined) if joined else at[id(place)]

            layer.sort(key=middle)
        crossings = _crossings(layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    layers[:] = best


def _crossings(layers: list[list[_Place]]) -> int:
    found = 0
    for layer, following in itertools.pairwise(layers):
        at = {id(p): i for i, p in enumerate(following)}
        ends = [at[id(q)] for p in layer for q in sorted(p.after, key=lambda q: at[id(q)])]
        found += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return found


def _rows(layers: list[list[_Place]]) -> None:
    """Heights: as near to what a place is joined with as its neighbours let it."""
    joined = [[p for p in layer if p.before or p.after] for layer in layers]
    for layer in joined:
        _apart(layer, [0.0] * len(layer))
    for sweep in range(SWEEPS + 1):
        forth = sweep % 2 == 0
        for layer in joined if forth else reversed(joined):
            _apart(layer, [_wanted(place, forth) for place in layer])
    high = min((p.y - p.height / 2 for layer in joined for p in layer), default=0.0)
    for layer in joined:
        for place in layer:
            place.y -= high
    for layer, known in zip(layers, joined, strict=True):
        low = known[-1].y + known[-1].height / 2 + GAP_Y if known else 0.0
        for place in (p for p in layer if not (p.before or p.after)):
            place.y = low + place.height / 2
            low += place.height + GAP_Y


def _wanted(place: _Place, forth: bool) -> float:
    beside = (place.before if forth else place.after) or [place]
    return sum(p.y for p in beside) / len(beside)


def _apart(layer: list[_Place], wanted: list[float]) -> None:
    """Give each its wanted height, or as near as may be with a gap between two: blocks that touch move as one."""
    offsets: list[float] = []
    below = 0.0
    for i, place in enumerate(layer):
        if i:
            both = layer[i - 1].event is not None or place.event is not None
            below += (layer[i - 1].height + place.height) / 2 + (GAP_Y if both else 4)
        offsets.append(below)
    blocks: list[tuple[float, int]] = []  # the mean of what its places want, and how many they are
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] >= mean:
            other, n = blocks.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        blocks.append((mean, count))
    places = iter(zip(layer, offsets, strict=True))
    for mean, count in blocks:
        for _ in range(count):
            place, offset = next(places)
            place.y = mean + offset


# ---------------------------------------------------------------- how they look


def _arrow_head(name: str, kind: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path class="{kind}" d="M0,0.6 L8,4 L0,7.4 z"/></marker>'
    )


def _arrow(route: list[_Place], left: float, *, hot: bool) -> str:
    x, y = left + route[0].layer * (BOX_W + GAP_X) + BOX_W, TOP + route[0].y
    path = [f"M{x:.1f},{y:.1f}"]
    for place in route[1:]:
        to_x, to_y = left + place.layer * (BOX_W + GAP_X), TOP + place.y
        bend = (to_x - x) / 2
        path.append(f"C{x + bend:.1f},{y:.1f} {to_x - bend:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}")
        x, y = to_x, to_y
        if place.event is None:
            x += BOX_W
            path.append(f"H{x:.1f}")
    kind, head = ("arrow hot", "h") if hot else ("arrow", "a")
    return f'<path class="{kind}" d="{" ".join(path)}" marker-end="url(#{head})"/>'


def _box(place: _Place, left: float, *, hot: bool) -> str:
    event = place.event
    assert event is not None
    x, y = left + place.layer * (BOX_W + GAP_X), TOP + place.y - BOX_H / 2
    keys = keys_told(event)
    return (
        f'<g class="{"hot" if hot else "cool"}"><title>position {_clean(label(event))}, keys: {_clean(keys)}</title>'
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{BOX_W}" height="{BOX_H}" rx="7"/>'
        f'<text class="place" x="{x + BOX_W / 2:.1f}" y="{y + 16:.1f}">{_clean(label(event))}</text>'
        f'<text class="keys" x="{x + BOX_W / 2:.1f}" y="{y + 30:.1f}">{_clean(text.cut(keys, KEYS_COLUMNS))}</text></g>'
    )


def _number(place: _Place) -> int:
    return -1 if place.event is None else place.event.number


def _clean(said: str) -> str:
    return escape(text.one_line(said))
