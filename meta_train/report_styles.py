"""Colour, dashes and marker of every method, the same in a figure and on the page."""

from typing import Literal, NamedTuple

Marker = Literal["circle", "square", "triangle", "diamond"]

LIGHT = ("#0072B2", "#C94F00", "#007F5F", "#3A97CF", "#8C564B", "#A86F00", "#1A1A1A", "#B0568F")
"""Okabe & Ito's palette, which colour-blind readers can tell apart, darkened to a contrast of 3 on white."""
DARK = ("#4FA8E0", "#F07A3C", "#2FBF95", "#8CCBF0", "#C99186", "#E6A91F", "#F2F2F2", "#E093C0")
"""The same hues, lightened to a contrast of 3 on a dark page."""

_LEARNED_COLOURS, _CLASSIC_COLOURS = (0, 1, 2, 6), (3, 4, 5, 6, 7)
_MARKERS: tuple[Marker, ...] = ("circle", "square", "triangle", "diamond")
_DASHES = ((7, 2), (2, 2), (8, 2, 2, 2), (4, 2), (10, 2, 2, 2, 2, 2), (1, 2))
"""Lengths of lines and gaps, in points."""


class Style(NamedTuple):
    """How a method's line is drawn; no two methods of a figure are drawn alike (of up to 16 learned, 30 classics)."""

    colour: int
    """Index into `LIGHT` and `DARK`."""
    dash: tuple[int, ...]
    """Empty is solid: a learned rule."""
    marker: Marker | None
    width: float
    """In points."""


def method_styles(summary: list[dict[str, str]]) -> dict[str, Style]:
    """Return the style of every method: learned rules solid with markers, others dashed, equal in every benchmark."""
    kinds = {row["method"]: row["kind"] for row in summary}
    styles, counts = {}, {True: 0, False: 0}
    for method, kind in kinds.items():
        learned = kind == "learned"
        index = counts[learned]
        counts[learned] += 1
        if learned:
            colour = _LEARNED_COLOURS[index % len(_LEARNED_COLOURS)]
            marker = _MARKERS[(index + index // len(_LEARNED_COLOURS)) % len(_MARKERS)]  # another one at every turn
            styles[method] = Style(colour, (), marker, 2.2)
        else:
            colour = _CLASSIC_COLOURS[index % len(_CLASSIC_COLOURS)]
            styles[method] = Style(colour, _DASHES[index % len(_DASHES)], None, 1.5)
    return styles
