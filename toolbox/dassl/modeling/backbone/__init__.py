"""Backbones: modules from images to features."""

from . import cnn_digits, resnet, wide_resnet
from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone", "cnn_digits", "resnet", "wide_resnet"]
