"""The error of a classifier that is used before it was fitted: scikit-learn's own where that is installed."""

try:
    from sklearn.exceptions import NotFittedError
except ImportError:

    class NotFittedError(ValueError, AttributeError):  # type: ignore[no-redef]
        """A classifier is used before `fit`."""


__all__ = ["NotFittedError"]
