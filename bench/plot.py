"""Plots as SVG, by hand: figures with their spread and goal; lines over time or over size."""

import math
from html import escape

FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = ["#1f6fb2", "#c2571a", "#2e8b57", "#7b4ea3", "#a03050", "#666666"]


def _svg(width, height, parts):
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {FONT}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def _text(x, y, words, anchor="start", fill="#222"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(str(words))}</text>'


def ratios(title, rows):
    """One line a row: a dot at the median, a bar from the lowest to the highest round, a mark at the goal."""
    rows = [row for row in rows if row["by"] == "ratio" and row["low"] > 0]
    if not rows:
        return None
    left, right, top, step = 470, 330, 44, 24
    bound = lambda row: [float(row["goal"].split()[1])] if row["goal"] else []
    seen = [value for row in rows for value in (row["low"], row["high"], *bound(row))] + [1]
    low, high = math.log(min(seen)) - 0.05, math.log(max(seen)) + 0.05
    at = lambda value: left + right * (math.log(value) - low) / (high - low)
    height = top + step * len(rows) + 12
    parts = [
        _text(12, 20, title),
        f'<line x1="{at(1):.1f}" x2="{at(1):.1f}" y1="{top - 12}" y2="{height - 8}" stroke="#bbb"/>',
        _text(at(1), top - 16, "1", "middle", "#888"),
    ]
    for number, row in enumerate(rows):
        y = top + step * number + 8
        colour = "#666666" if row["met"] is None else "#2e8b57" if row["met"] else "#c2571a"
        parts.append(_text(12, y + 4, row["what"]))
        parts.append(
            f'<line x1="{at(row["low"]):.1f}" x2="{at(row["high"]):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(
            f'<circle cx="{at(row["figure"]) if row["figure"] > 0 else left:.1f}" cy="{y}" r="5" fill="{colour}"/>'
        )
        for value in bound(row):
            parts.append(
                f'<line x1="{at(value):.1f}" x2="{at(value):.1f}" y1="{y - 8}" y2="{y + 8}" '
                'stroke="#222" stroke-dasharray="2,2"/>'
            )
        parts.append(_text(left + right + 12, y + 4, f'{row["figure"]:.2f}'))
    return _svg(left + right + 70, height, parts)


def lines(title, across, up, series, logarithmic=False):
    """`series`: {name: [(x, y)]}."""
    left, right, top, bottom = 70, 560, 40, 300
    points = [point for line in series.values() for point in line]
    scale = (lambda value: math.log10(max(value, 1e-9))) if logarithmic else (lambda value: value)
    xs, ys = [scale(x) for x, _ in points], [scale(y) for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = (min(ys) - 0.1, max(ys) + 0.1) if logarithmic else (0, max(ys) * 1.1 or 1)
    x_at = lambda x: left + (right - left) * (scale(x) - x_low) / (x_high - x_low)
    y_at = lambda y: bottom - (bottom - top) * (scale(y) - y_low) / (y_high - y_low)
    parts = [
        _text(12, 20, title),
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#888"/>',
        _text((left + right) / 2, bottom + 34, across, "middle"),
        _text(12, top - 4, up, "start", "#888"),
    ]
    for share in (0, 0.5, 1):
        for value, place in ((x_low + share * (x_high - x_low), "x"), (y_low + share * (y_high - y_low), "y")):
            shown = f"{10 ** value if logarithmic else value:.3g}"
            if place == "x":
                parts.append(_text(left + (right - left) * share, bottom + 16, shown, "middle", "#666"))
            else:
                parts.append(_text(left - 6, bottom - (bottom - top) * share + 4, shown, "end", "#666"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        # As many points as can be seen.
        line = line[:: max(1, len(line) // 300)]
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if logarithmic:
            parts += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        parts.append(_text(right + 12, top + 18 * number + 8, name, "start", colour))
    return _svg(right + 230, bottom + 46, parts)
