"""Numbers that are no numbers (NaN) or infinite, in files of weights, in features and in scores: found, and named."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dassl_clip.results.errors import NotFiniteError, UserError

MASKS = ("attn_mask",)  # entries of state dicts that hold -inf by right


def finite_rows(x: Tensor) -> Tensor:
    """Which rows of `x` `[N, ...]` hold finite numbers only, `[N]`.

    A sum is finite only if all that it adds is; only rows with another sum are looked at number by number.
    """
    rows = x.flatten(1) if x.dim() > 1 else x[:, None]
    finite = (rows.double() if x.dtype == torch.float64 else rows.float()).sum(1).isfinite()
    if not bool(finite.all()):
        finite[~finite] = rows[~finite].isfinite().all(1)
    return finite


def check_state(state: Mapping[str, object], source: str) -> None:
    """Make sure that the floating-point tensors of a state dict hold finite numbers only.

    Args:
        state: The state dict; masks in it are not looked at.
        source: What the error calls it.

    Raises:
        UserError: A tensor holds NaN or an infinite number; the message names the first one.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or name.rpartition(".")[2] in MASKS:
            continue
        if value.numel() and not bool(finite_rows(value.detach().reshape(1, -1))):
            wrong = int((~value.float().isfinite()).sum())
            raise UserError(
                f"{source}: {wrong} of the {value.numel():,} numbers of the tensor {name!r} are NaN or infinite: the "
                "file is damaged, or its training diverged; get it, or train it, again"
            )


def check_rows(x: Tensor, what: str, names: list[str]) -> None:
    """Make sure that every row of `x` `[N, ...]` is finite.

    Args:
        x: Features or scores.
        what: What they are, for the message.
        names: What each row is of, `N`.

    Raises:
        NotFiniteError: A row holds NaN or an infinite number; the message names the first one.
    """
    finite = finite_rows(x)
    if not bool(finite.all()):
        wrong = (~finite).nonzero().flatten().tolist()
        raise NotFiniteError(
            f"the {what} of {names[wrong[0]]} are not finite ({len(wrong)} of {len(names)} of them): the weights, the "
            "learned parts or the precision give numbers that are NaN or infinite"
        )
