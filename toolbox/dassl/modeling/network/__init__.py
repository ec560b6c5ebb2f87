"""Networks: complete modules by name."""
# ruff: noqa: F401 (offered from here)

from .build import NETWORK_REGISTRY, build_network
