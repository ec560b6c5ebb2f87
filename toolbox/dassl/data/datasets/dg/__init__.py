"""Data sets of domain generalisation."""
