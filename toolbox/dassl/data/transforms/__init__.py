"""Image transforms by name. `INTERPOLATION_MODES` is looked up on demand, since it needs torchvision."""

from .transforms import build_transform

__all__ = ["INTERPOLATION_MODES", "build_transform"]


def __getattr__(name: str):
    if name == "INTERPOLATION_MODES":
        from .interpolation import INTERPOLATION_MODES

        return INTERPOLATION_MODES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
