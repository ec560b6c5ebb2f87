"""Backbones: modules from images to features. Every registered name is a function here."""
# ruff: noqa: F401 (offered from here)

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .cnn_digitsdg import cnn_digitsdg
from .cnn_digitsingle import cnn_digitsingle
from .resnet import FACTORIES
from .wide_resnet import wide_resnet_16_4, wide_resnet_28_2

globals().update({build.__name__: build for build in FACTORIES})
