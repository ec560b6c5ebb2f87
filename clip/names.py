"""Names of backbones that a command line shows without loading any."""

OPENAI_NAMES = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
ICONS = "IconsCLIP"  # this project's model
