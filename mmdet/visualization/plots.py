"""Small inline SVG plots and bars for pages that need no network and no script."""

from collections.abc import Mapping, Sequence
from html import escape

_LEFT, _TOP, _WIDTH, _HEIGHT = 46, 10, 322, 220  # of the area of a plot
COLOURS = ('#1f5fa8', '#c4501b', '#2e7d4f', '#8a4fa3', '#a67c00', '#4f6d7a')


def curves(lines: Mapping[str, Sequence[float]], x_title: str, y_title: str) -> str:
    """Lines over [0, 1] x [0, 1], their points at equal steps of x; the key stands below the plot."""
    parts, keys = [_axes(x_title, y_title)], []
    for colour, (name, values) in zip(COLOURS * (len(lines) // len(COLOURS) + 1), lines.items()):
        steps = max(len(values) - 1, 1)
        points = ' '.join(
            f'{_LEFT + i / steps * _WIDTH:.1f},{_TOP + (1 - y) * _HEIGHT:.1f}' for i, y in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        keys.append(f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>')
    return f'{_svg(parts)}<p class="keys">{" ".join(keys)}</p>'


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """Bars of the share that is right in each bin of scores, and the diagonal on which they would keep their word."""
    parts = [_axes('score', 'share that is right')]
    for one in bins:
        if one['count']:
            x, w = _LEFT + one['bin_lower'] * _WIDTH, (one['bin_upper'] - one['bin_lower']) * _WIDTH
            h = one['avg_accuracy'] * _HEIGHT
            title = (f'score {one["bin_lower"]:.1f} to {one["bin_upper"]:.1f}: {one["count"]} detections, '
                     f'{100 * one["avg_accuracy"]:.0f} % right')  # fmt: skip
            parts.append(f'<rect x="{x + 1:.1f}" y="{_TOP + _HEIGHT - h:.1f}" width="{w - 2:.1f}" height="{h:.1f}" '
                         f'fill="{COLOURS[0]}"><title>{title}</title></rect>')
    parts.append(f'<line x1="{_LEFT}" y1="{_TOP + _HEIGHT}" x2="{_LEFT + _WIDTH}" y2="{_TOP}" stroke="#c4501b" '
                 'stroke-width="1.5" stroke-dasharray="5 4"/>')
    return _svg(parts)


def spark(values: Sequence[float], width: int = 84, height: int = 26) -> str:
    """A line over [0, 1] x [0, 1] without axes, the area under it shaded."""
    if not values:
        return ''
    steps = max(len(values) - 1, 1)
    points = ' '.join(f'{i / steps * width:.0f},{(1 - y) * (height - 2) + 1:.0f}' for i, y in enumerate(values))
    return (f'<svg class="spark" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
            f'<polygon points="0,{height} {points} {width},{height}"/><polyline points="{points}"/></svg>')


def bar(share: float, text: str, colour: str = COLOURS[0]) -> str:
    """A horizontal bar, `share` of its cell long, with a text beside it."""
    return (f'<div class="bar"><i style="width:{100 * min(max(share, 0), 1):.1f}%;background:{colour}"></i></div>'
            f'<span class="num">{escape(text)}</span>')


def interval(least: float, value: float, most: float, limit: float, width: int = 180) -> str:
    """A difference with its interval on an axis from -`limit` to `limit`; grey where the interval holds 0."""
    colour = '#777' if least <= 0 <= most else COLOURS[2] if least > 0 else COLOURS[1]
    x = [(1 + min(max(v / limit, -1), 1)) / 2 * (width - 10) + 5 for v in (least, value, most)]
    return (f'<svg class="interval" width="{width}" height="20" viewBox="0 0 {width} 20">'
            f'<line x1="{width / 2}" y1="0" x2="{width / 2}" y2="20" stroke="#bbb"/>'
            f'<line x1="{x[0]:.1f}" y1="10" x2="{x[2]:.1f}" y2="10" stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{x[1]:.1f}" cy="10" r="5" fill="{colour}"/></svg>')


def _axes(x_title: str, y_title: str) -> str:
    parts, right, bottom = [], _LEFT + _WIDTH, _TOP + _HEIGHT
    for step in range(6):
        value = step / 5
        x, y = _LEFT + value * _WIDTH, bottom - value * _HEIGHT
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e3e3e3"/>'
                     f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>'
                     f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:.1f}</text>')
    parts.append(f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}" fill="none" stroke="#555"/>'
                 f'<text x="{(_LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">{escape(x_title)}</text>'
                 f'<text transform="translate(13,{(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
                 f'{escape(y_title)}</text>')
    return ''.join(parts)


def _svg(parts: Sequence[str]) -> str:
    size = f'{_LEFT + _WIDTH + 12} {_TOP + _HEIGHT + 40}'
    return f'<svg class="plot" viewBox="0 0 {size}" role="img">{"".join(parts)}</svg>'
