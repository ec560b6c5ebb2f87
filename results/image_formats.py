"""Which files are images: formats that are decoded, endings of names, folders that hold none."""

import functools

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")  # Pillow runs a program on others, such as EPS

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jfif")
IGNORED_FOLDERS = ("__MACOSX",)


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def is_image(name: str) -> bool:
    """Whether a file name has the ending of an image, in any letter case."""
    return name.lower().endswith(IMAGE_EXTENSIONS)
