"""Accuracy and distances."""
# ruff: noqa: F401 (offered from here)

from .accuracy import compute_accuracy
from .distance import compute_distance_matrix, cosine_distance, euclidean_squared_distance
