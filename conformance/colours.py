"""The colours of the heat map: a share of 0 to 1 as one of a few steps, in light and in dark.

The steps are even in lightness (CIE L*), from close to the page to far from it, so that equal differences of the share
look equal, without colour vision too. The number in a step is black or white, whichever has more contrast: at least
4.5, as the accessibility guidelines want it, since no colour is near to both.
"""

from __future__ import annotations

from itertools import pairwise

__all__ = ["STEPS", "contrast", "level", "ramp", "ramps"]

STEPS = 21

# Mint to indigo on a white page, navy to mint on a black one: lightness 96 to 36, and 21 to 89.
LIGHT = ("#e3f8f7", "#8bd6d1", "#36b0bc", "#1680ba", "#374cac")
DARK = ("#27324a", "#3a5992", "#288cbd", "#36c3c3", "#91f3c9")


def level(share: float) -> int:
    """The step of a share, which is within 0 to 1 where it passed."""
    return round(min(max(0.0, share), 1.0) * (STEPS - 1))


def ramp(stops: tuple[str, ...]) -> list[str]:
    """The steps between the stops."""
    points = [tuple(int(stop[i : i + 2], 16) for i in (1, 3, 5)) for stop in stops]
    each = (STEPS - 1) // (len(stops) - 1)
    steps = [
        tuple(round(a + (b - a) * i / each) for a, b in zip(one, two))
        for one, two in pairwise(points)
        for i in range(each)
    ]
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in (*steps, points[-1])]


def contrast(one: str, two: str) -> float:
    """The contrast ratio of the accessibility guidelines (WCAG 2), from 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(two)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ramps() -> str:
    """The rules of the style sheet, ``.s0`` and so on."""

    def rules(stops: tuple[str, ...]) -> str:
        return "".join(
            f".s{i}{{background:{colour};color:{max('#000000', '#ffffff', key=lambda ink: contrast(ink, colour))}}}\n"
            for i, colour in enumerate(ramp(stops))
        )

    return f"{rules(LIGHT)}@media (prefers-color-scheme: dark) {{\n{rules(DARK)}}}\n"
