"""Errors for what a user can get wrong. They are also AssertionErrors, which plugins may catch."""


class CheckError(AssertionError, ValueError):
    """A value that the toolbox refuses; the message says what was given and what was expected."""


class MissingFileError(AssertionError, FileNotFoundError):
    """A file that must exist and does not; the message names it."""
