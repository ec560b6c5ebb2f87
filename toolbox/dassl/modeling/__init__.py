"""Backbones, heads and networks by name."""
# ruff: noqa: F401 (offered from here)

from .backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from .head import HEAD_REGISTRY, build_head
from .network import NETWORK_REGISTRY, build_network
