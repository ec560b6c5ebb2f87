"""Image transforms by name. `INTERPOLATION_MODES` is looked up on demand, since it needs torchvision."""

from dassl.utils.on_demand import import_on_demand

from .transforms import build_transform

__all__ = ["INTERPOLATION_MODES", "build_transform"]

__getattr__ = import_on_demand(__name__, INTERPOLATION_MODES=".interpolation:INTERPOLATION_MODES")
