"""Where the names of marks stand, so that they do not lie on one another. Knows boxes only."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
_LETTER, _LINE, _MARK = 7.0, 15.0, 7.0  # a name's letter and height, a mark's half
_BESIDE = 30.0  # pixels left and right of the outermost marks that a name may take
# Plotly's names, best first, with the share of the label's width and height that lies left of and
# above the mark.
_SIDES = {
    "top center": (0.5, 1.0), "bottom center": (0.5, 0.0), "middle right": (0.0, 0.5),
    "middle left": (1.0, 0.5), "top right": (0.0, 1.0), "bottom right": (0.0, 0.0),
    "top left": (1.0, 1.0), "bottom left": (1.0, 0.0),
}  # fmt: skip


def sides(
    points: Sequence[tuple[float, float]], names: Sequence[str], width: float, height: float
) -> list[str]:
    """The side of its mark on which each name stands, in Plotly's words.

    One after the other, on the side where it lies least on what is there (marks, and names before
    it) and beyond the panel's ends. Names that no side can keep apart still overlap, and pointing
    at a mark tells its name.

    Args:
        points: of the marks, in the data's units.
        names: one a mark.
        width: of the panel, pixels, from the least to the greatest x.
        height: from the least to the greatest y.
    """
    x, y = (_pixels([point[i] for point in points], size) for i, size in ((0, width), (1, height)))
    # Plotly's y grows upwards, a box's downwards.
    centres = [(left, height - up) for left, up in zip(x, y, strict=True)]
    taken = [(cx - _MARK, cy - _MARK, cx + _MARK, cy + _MARK) for cx, cy in centres]
    ends = [(-2 * width, -height, -_BESIDE, 2 * height),
            (width + _BESIDE, -height, 3 * width, 2 * height)]  # fmt: skip
    found = []
    for centre, name in zip(centres, names, strict=True):
        boxes = {side: _box(centre, name, side) for side in _SIDES}
        best = min(
            boxes, key=lambda side: sum(_shared(boxes[side], other) for other in (*taken, *ends))
        )
        taken.append(boxes[best])
        found.append(best)
    return found


def _pixels(values: Sequence[float], size: float) -> list[float]:
    low, span = min(values, default=0), max(values, default=0) - min(values, default=0)
    return [size * (value - low) / span if span else size / 2 for value in values]


def _box(centre: tuple[float, float], name: str, side: str) -> Box:
    across, up = _SIDES[side]
    wide = _LETTER * len(name)
    # Beside the mark, not on it.
    left = centre[0] - across * wide + _MARK * (1 - 2 * across)
    top = centre[1] - up * _LINE + _MARK * (1 - 2 * up)
    return (left, top, left + wide, top + _LINE)


def _shared(one: Box, other: Box) -> float:
    """Area that two boxes have in common."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)
