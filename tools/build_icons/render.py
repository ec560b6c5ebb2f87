"""Render SVG icons to square RGB pictures: centred, on white, `currentColor` black."""

import io
import multiprocessing
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .fetch import Icon

PIXELS = 64


def svg_document(icon: Icon, colour: str = "#000000") -> str:
    """A whole SVG document whose square view box holds the icon in its centre."""
    left, top, width, height = icon.box
    side = max(width, height)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side:g}" height="{side:g}" viewBox="{left:g} {top:g} {side:g} {side:g}" color="{colour}">'
        f"{icon.body}</svg>"
    )


def render(icon: Icon, pixels: int = PIXELS) -> np.ndarray:
    """The icon as RGB bytes.

    Returns:
        uint8 array [pixels, pixels, 3].

    Raises:
        ImportError: if `resvg_py` is not installed.
        ValueError: if the renderer cannot read the SVG (the icon is named).
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError("Rendering needs resvg_py: `pip install 'dassl-clip[build]'`.") from error
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg_document(icon), background="#ffffff", width=pixels, height=pixels, skip_system_fonts=True
        )
    except ValueError as error:
        raise ValueError(f"{icon.pack}:{icon.name} cannot be rendered: {error}") from error
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def render_many(icons: Sequence[Icon], pixels: int = PIXELS, workers: int = 2) -> np.ndarray:
    """All icons in order, uint8 [N, pixels, pixels, 3]."""
    if not icons:
        return np.zeros((0, pixels, pixels, 3), dtype=np.uint8)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pictures = pool.starmap(render, ((icon, pixels) for icon in icons), chunksize=256)
    return np.stack(pictures)
