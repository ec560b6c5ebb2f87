"""Learnable contexts for prompts: CoOp's parameter, which GOPro's prompt generator starts from too.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models" (CoOp), IJCV 2022, eq. 2 and 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dassl_clip.results.errors import UserError

from .text_tower import TextTower
from .tokens import ClassTokens

CONTEXT_STD = 0.02


def initial_words(words: str) -> str:
    """The words of `CTX_INIT`, with blanks for `_`; empty if there are none, and the context starts at random."""
    return words.replace("_", " ").strip()


def initial_context(text: TextTower, words: str, n_ctx: int) -> Tensor:
    """Context vectors to start from.

    Args:
        text: The frozen text tower.
        words: Initial words such as "a photo of a" (`_` counts as a blank); empty for a random start.
        n_ctx: `M` for a random start; ignored when words are given, whose tokens fix `M`.

    Returns:
        `[M, D]`, float32: the words' token embeddings, or draws from N(0, 0.02) of torch's global generator.

    Raises:
        UserError: Neither words nor a positive number of tokens is given, or the words are no tokens to the tower's
            tokenizer or leave no tokens for a class name.
    """
    words = initial_words(words)
    if not words:
        if n_ctx < 1:
            raise UserError(f"a random context needs N_CTX of at least 1, got {n_ctx}; or give words in CTX_INIT")
        return torch.randn(n_ctx, text.width) * CONTEXT_STD
    ids = text.tokens.inner(words)
    if not len(ids):
        raise UserError(f"the initial context {words!r} is no token of this model's tokenizer; give other CTX_INIT")
    if len(ids) > text.context_length - 4:
        raise UserError(
            f"the initial context {words!r} has {len(ids)} tokens, but the text tower reads {text.context_length} "
            f"in all, class name included; shorten CTX_INIT"
        )
    return text.embed(ids).detach().float().cpu().clone()


class ContextLearner(nn.Module):
    """CoOp's learnable context, shared by all classes or, from a random start, one for each class.

    A context that starts from words is shared, whatever `class_specific` says, as in CoOp's program.

    Its only parameter is `ctx`, `[M, D]` or `[C, M, D]`, its name in the checkpoints of CoOp's authors.
    """

    def __init__(self, text: TextTower, words: str, n_ctx: int, n_classes: int, class_specific: bool):
        super().__init__()
        context = initial_context(text, words, n_ctx)
        self.class_specific = class_specific and not initial_words(words)
        if self.class_specific:
            context = torch.randn(n_classes, *context.shape) * CONTEXT_STD
        self.ctx = nn.Parameter(context)

    def forward(self, text: TextTower, classes: ClassTokens, position: str = "end") -> Tensor:
        """Text features of all classes, `[C, E]`, not normalised.

        Args:
            text: The frozen text tower.
            classes: The tokens of the class names.
            position: Where the class name stands: "end", "middle" or "front" of the context.
        """
        return text.encode_prompts(self.ctx, classes, position=position, class_specific=self.class_specific)


NOISE_STD = 0.02


def noise_context(
    n_tokens: int,
    width: int,
    std: float = NOISE_STD,
    generator: torch.Generator | None = None,
    draws: int | None = None,
) -> Tensor:
    """Noise embeddings N(0, std), drawn on the CPU, so that a seed means the same on every device.

    Args:
        n_tokens: `M`.
        width: `D`.
        std: Standard deviation.
        generator: A CPU generator; None takes PyTorch's own.
        draws: Number of draws; None makes one without a leading axis.

    Returns:
        `[M, D]`, or `[draws, M, D]`, float32. The draws of a seed do not depend on how many follow.

    Raises:
        UserError: There is less than one token, or less than one draw.
    """
    if n_tokens < 1 or (draws is not None and draws < 1):
        raise UserError(f"noise needs at least one token and one draw, got {n_tokens} tokens and {draws} draws")
    # One call a draw: PyTorch's normal numbers depend on the size of the tensor that they fill.
    noise = torch.stack([std * torch.randn(n_tokens, width, generator=generator) for _ in range(draws or 1)])
    return noise if draws is not None else noise[0]


@torch.no_grad()
def noise_features(text: TextTower, classnames: Sequence[str], context: Tensor) -> Tensor:
    """Text features of the form NC: noise tokens, then the class name.

    Args:
        text: The text tower.
        classnames: `C` class names.
        context: `[M, D]` or `[draws, M, D]`, from `noise_context`; the same for all classes.

    Returns:
        `[C, E]` or `[draws, C, E]`, not normalised.
    """
    classes = text.class_tokens(classnames, suffix="", n_ctx=context.shape[-2])
    return text.encode_prompts(context.to(text.device), classes)
