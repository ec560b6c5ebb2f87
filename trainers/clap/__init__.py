"""CLAP (ECCV 2024): a head trained on augmented text alone."""
