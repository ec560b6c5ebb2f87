"""Numbers that say nothing, found and named: NaN and infinite ones, quantised weights, features that are all 0."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dassl_clip.results.errors import NotFiniteError, UserError

MASKS = ("attn_mask",)  # entries of state dicts that hold -inf by right
BYTES = (torch.int8, torch.uint8, torch.qint8, torch.quint8)


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
    """Make sure that the tensors of a state dict are numbers to compute with, all of them finite.

    Args:
        state: The state dict; masks in it are not looked at.
        source: What the error calls it.

    Raises:
        UserError: A tensor holds NaN or an infinite number, or is quantised; the message names the first one.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor) or name.rpartition(".")[2] in MASKS:
            continue
        if value.dtype in BYTES and value.dim():
            raise UserError(
                f"{source}: the tensor {name!r} is {str(value.dtype).removeprefix('torch.')}, whole numbers of 8 bits: "
                "quantised weights, whose scales are not read; give the weights in float32, float16 or bfloat16"
            )
        if not value.is_floating_point():
            continue
        if value.numel() and not bool(finite_rows(value.detach().reshape(1, -1))):
            wrong = int((~value.float().isfinite()).sum())
            raise UserError(
                f"{source}: {wrong} of the {value.numel():,} numbers of the tensor {name!r} are NaN or infinite: the "
                "file is damaged, or its training diverged; get it, or train it, again"
            )


def check_features(x: Tensor, what: str, names: list[str]) -> None:
    """`check_rows` of features, of which no row is 0 throughout either: it has no direction to compare.

    Raises:
        NotFiniteError: A row is not finite, or has the length 0; the message names the first one.
    """
    zero = ~x.flatten(1).any(dim=1)
    if bool((finite_rows(x) & ~zero).all()):  # once for both: a GPU need not wait again
        return
    check_rows(x, what, names)
    wrong = zero.nonzero().flatten().tolist()
    raise NotFiniteError(
        f"the {what} of {names[wrong[0]]} are 0 throughout ({len(wrong)} of {len(names)} of them): the weights, or the "
        "learned parts, were never trained"
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
