"""The program that makes the embedded data set and the small CLIP again: fetch, render, select, pre-train, measure.

`python -m tools.build_icons` runs all steps; `docs/icons.md` explains them.
"""
