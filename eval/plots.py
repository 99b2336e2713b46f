"""Plots of shares as SVG, for pages whose style defines the colours --c0 ... --c6, --grid and --muted.

Lines differ in colour, dash and marker, so that they can be told apart without colours too.
"""

import dataclasses
import html
import math

import results

NUM_COLOURS = 7

# Around (0, 0); no two lines of a plot look alike before 56 lines: 7 colours and 8 markers.
_MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0Z",
    "M-3.2-3.2H3.2V3.2H-3.2Z",
    "M0-4.2L4 3H-4Z",
    "M0-4.5L4.5 0L0 4.5L-4.5 0Z",
    "M0 4.2L4-3H-4Z",
    "M-4 0H4M0-4V4",
    "M-3.2-3.2L3.2 3.2M-3.2 3.2L3.2-3.2",
    "M-4-2.6H4V2.6H-4Z",
)
_DASHES = ("", "6 3", "2 3", "8 3 2 3")

# Pixels at the size drawn: small enough that a phone need not shrink the text.
_WIDTH, _LEAST_HEIGHT = 330, 220
_LEFT, _TOP, _BOTTOM = 32, 24, 40
_CHARACTER, _LINE = 6.4, 13  # of text
_MARKER_ROOM = 11


@dataclasses.dataclass(frozen=True)
class Axis:
    label: str
    low: float
    high: float
    ticks: list[tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Line:
    style: int  # its number in the legend
    label: str  # at its end; "": none
    points: list[tuple[float, results.Share, str]]  # place on the axis, share, what the place is called


def length_axis(lengths):
    ticks = [(math.log2(length), str(length)) for length in sorted(lengths)]
    return Axis("length (tokens, logarithmic)", ticks[0][0] - 0.2, ticks[-1][0] + 0.2, ticks)


def index_axis(count):
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, math.ceil(count / 10)) if count <= 10 * s)
    ticks = [(i, str(i)) for i in range(1, count + 1) if i == 1 or i % step == 0]
    return Axis("number of the answer in the reply", 0.5, count + 0.5, ticks)


def place_axis():
    return Axis("place of the evidence in the document (%)", 0, 10, [(i, str(10 * i)) for i in range(0, 11, 2)])


def percent(share):
    return f"{100 * share.value:.1f} %"


def swatch(style):
    """A line with its marker, for a legend."""
    return (f'<svg class="swatch s{style % NUM_COLOURS}" width="34" height="14" viewBox="-17 -7 34 14" aria-hidden="true">'
            f'<path class="line" d="M-17 0H17"{_dash(style)}/>{_marker(style, 0, 0)}</svg>')  # fmt: skip


def panel(description, axis, lines, measure="right answers"):
    """The plot of shares along an axis; `description` is for those who cannot see it."""
    labelled = [line for line in lines if line.label]
    right = max([_CHARACTER * len(line.label) + 16 for line in labelled], default=14)
    height = max(_LEAST_HEIGHT, _LINE * len(labelled) + _BOTTOM)  # room for a label per line
    frame = _Frame(axis, _WIDTH - right, height)
    drawn = [frame.grid(measure)]
    apart = min(2.5, 10 / len(lines))  # so that equal shares do not hide each other
    for i, line in enumerate(lines):
        drawn.append(_line(line, frame, apart * (i - (len(lines) - 1) / 2)))
    drawn.append(_end_labels(labelled, frame))
    text = html.escape(description)
    return (f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{text}"><title>{text}</title>'
            f'{"".join(drawn)}</svg>')  # fmt: skip


class _Frame:
    """Where things are: x from _LEFT to `right`, shares from the bottom up."""

    def __init__(self, axis, right, height):
        self.axis, self.right, self.bottom = axis, right, height - _BOTTOM

    def x(self, value):
        return _LEFT + (value - self.axis.low) / (self.axis.high - self.axis.low) * (self.right - _LEFT)

    def y(self, share):
        return self.bottom - share * (self.bottom - _TOP)

    def grid(self, measure):
        parts = [f'<text x="0" y="11">{measure} (%)</text>']
        for part in (0, 25, 50, 75, 100):
            y = self.y(part / 100)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{self.right:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{part}</text>')
        free_from = 0
        for value, text in self.axis.ticks:
            x, half = self.x(value), _CHARACTER * len(text) / 2
            parts.append(f'<path class="tick" d="M{x:.1f} {self.bottom}v4"/>')
            if x - half >= free_from:
                parts.append(f'<text x="{x:.1f}" y="{self.bottom + 17}" text-anchor="middle">{text}</text>')
                free_from = x + half + 5
        middle = min(max((_LEFT + self.right) / 2, _CHARACTER * len(self.axis.label) / 2), _WIDTH)
        parts.append(f'<text x="{middle:.1f}" y="{self.bottom + _BOTTOM - 6}" text-anchor="middle">{self.axis.label}</text>')
        return "".join(parts)


def _dash(style):
    dash = _DASHES[style % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _marker(style, x, y, title=""):
    title = f"<title>{html.escape(title)}</title>" if title else ""
    return f'<path class="marker" transform="translate({x:.1f} {y:.1f})" d="{_MARKERS[style % len(_MARKERS)]}">{title}</path>'


def _line(line, frame, shift):
    places = [(frame.x(x) + shift, frame.y(share.value)) for x, share, _ in line.points]
    parts = [f'<g class="s{line.style % NUM_COLOURS}">']
    parts.append(f'<path class="line" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"{_dash(line.style)}/>')
    last_x = -math.inf
    for (x, y), (_, share, name) in zip(places, line.points):
        if x - last_x < _MARKER_ROOM:
            continue
        last_x = x
        low, high = share.interval()
        said = f"{name}: {percent(share)} of {share.whole}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        parts.append(f'<path class="interval" d="M{x:.1f} {frame.y(low):.1f}V{frame.y(high):.1f}"/>')
        parts.append(_marker(line.style, x, y, said))
    return "".join(parts) + "</g>"


def _end_labels(lines, frame):
    """Beside the right end, spread where they would overlap, with leaders from where the lines end."""
    ends = sorted((frame.y(line.points[-1][1].value), i) for i, line in enumerate(lines))
    heights, lowest = [], -math.inf
    for y, _ in ends:
        lowest = max(y, lowest + _LINE)
        heights.append(lowest)
    limit = frame.bottom
    for i in reversed(range(len(heights))):
        heights[i] = limit = min(heights[i], limit)
        limit -= _LINE
    parts = []
    for (y, i), height in zip(ends, heights):
        line = lines[i]
        x = frame.x(line.points[-1][0]) + 7
        leader = f"M{x:.1f} {y:.1f}L{frame.right + 3:.1f} {y:.1f}L{frame.right + 9:.1f} {height:.1f}"
        parts.append(f'<path class="leader s{line.style % NUM_COLOURS}" d="{leader}"/>')
        parts.append(f'<text class="end" x="{frame.right + 11:.1f}" y="{height + 4:.1f}">{html.escape(line.label)}</text>')
    return "".join(parts)
