"""Temperatures in units of the logit scale."""

from dassl_clip.results.errors import UserError

AUTO = "auto"


def parse_temperature(value: str | float, key: str, unit: float, default: float) -> float:
    """A positive number, `auto` for `default` units, or `auto:K` for `K` units.

    Args:
        value: The setting.
        key: Its name, for the message.
        unit: 1 / logit scale.
        default: What `auto` stands for, in units.

    Raises:
        UserError: None of these.
    """
    text = str(value).strip().lower()
    if text == AUTO:
        return default * unit
    relative = text.startswith(f"{AUTO}:")
    try:
        number = float(text.removeprefix(f"{AUTO}:"))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(
            f"{key} is {value!r}; expected a positive number such as 0.01, '{AUTO}', or '{AUTO}:K' for K over the "
            "logit scale"
        )
    return number * unit if relative else number
