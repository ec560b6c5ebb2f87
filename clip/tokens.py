"""Class names and texts as tokens, for any tokenizer that open_clip builds.

Shapes: `C` classes, `K` texts, `M` context tokens, `S1` tokens from the class name to end-of-text.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

logger = logging.getLogger(__name__)

DEFAULT_LENGTH = 77  # tokens of a text where a configuration says nothing, as in open_clip
PLACEHOLDER = "X"
CACHED_TEXTS = 65536
CACHED_CLASS_LISTS = 8
LONGEST_TEXT = 65536
MOST_SPECIAL_TOKENS = 3


@dataclass(frozen=True)
class ClassTokens:
    """The tokens of class names, ready to follow any context.

    Attributes:
        classnames: The names, with blanks for underscores.
        ids: `[C, S1]`, tokens of the name, the suffix and end-of-text; padded.
        lengths: Number of those tokens for each class, end-of-text included.
        name_lengths: How many of them are the name's own.
        suffix: The text after each name.
    """

    classnames: tuple[str, ...]
    ids: Tensor
    lengths: tuple[int, ...]
    name_lengths: tuple[int, ...]
    suffix: str

    def __len__(self) -> int:
        return len(self.classnames)


class TokenReader:
    """A tokenizer, what it puts around a text, and a memory of what it has read.

    Args:
        tokenizer: Called as `tokenizer(texts, context_length=...)`; gives `[K, context_length]`.
        context_length: Tokens that the text tower reads.

    Attributes:
        head: Tokens that it puts before each text (start-of-text; none for SigLIP).
        tail: Tokens that it puts after each text (end-of-text; none where that token is the padding as well).
        pad: The token that fills a row.
        placeholder: A token that stands for a context vector where a tower wants ids beside embeddings.
    """

    def __init__(self, tokenizer: Callable[..., Tensor], context_length: int):
        if context_length < 1:
            raise UserError(f"a text tower reads 1 token or more, not {context_length}")
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._texts: dict[str, Tensor] = {}
        self._classes: dict[tuple[tuple[str, ...], str], ClassTokens] = {}
        self.pad = int(tokenizer([""], context_length=context_length)[0, -1])
        empty, single = self._contents(["", PLACEHOLDER])
        self.head = empty[: common_length(empty, single)]
        self.tail = empty[len(self.head) :]
        self._placeholder_length = len(single) - len(empty)
        self.placeholder = single[len(self.head)]

    def read(self, texts: Sequence[str]) -> Tensor:
        """Token ids `[K, context_length]` of whole texts, cut as open_clip cuts them; a cut text is warned about."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._texts))
        if len(self._texts) + len(missing) > CACHED_TEXTS:
            self._texts.clear()
            missing = list(dict.fromkeys(texts))
        if missing:
            rows = self.tokenizer(missing, context_length=self.context_length)
            full = [text for text, row in zip(missing, rows) if int(row[-1]) != self.pad]
            contents = self._contents(full) if full else []
            cut = [text for text, own in zip(full, contents) if len(own) > self.context_length]
            if cut:
                logger.warning(
                    "%d of %d texts are longer than the text tower's %d tokens and lose their end, such as %r",
                    len(cut), len(missing), self.context_length, cut[0],
                )  # fmt: skip
            self._texts.update(zip(missing, rows))
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.long)
        return torch.stack([self._texts[text] for text in texts]).long()

    def inner(self, text: str) -> Tensor:
        """The uncut token ids of a text `[M]`, without what the tokenizer puts before and after it."""
        content = self._contents([text])[0]
        return torch.tensor(content[len(self.head) : len(content) - len(self.tail)], dtype=torch.long)

    def classes(self, classnames: Sequence[str], suffix: str, n_ctx: int) -> ClassTokens:
        """Tokens of class names and what follows them, read inside the sentence "X name." as CoOp reads them.

        Args:
            classnames: `C` names; underscores count as blanks.
            suffix: The text right after each name.
            n_ctx: `M`, the number of context tokens that have to fit beside them.

        Raises:
            UserError: A name is empty or does not fit into the context length, or the tokenizer has no such form.
        """
        if isinstance(classnames, str):
            raise UserError(f"class names must be a list of texts, got the single text {classnames!r}")
        names = tuple(display_name(str(name)) for name in classnames)
        if not names:
            raise UserError("class names must be one or more texts, got none")
        if len(self.head) + len(self.tail) > MOST_SPECIAL_TOKENS:
            raise UserError(
                "this model's tokenizer fills each row up to a last special token, so a learned context has no place "
                "in it; use the trainers that encode whole texts, or another backbone"
            )
        key = (names, suffix)
        if key not in self._classes:
            if len(self._classes) >= CACHED_CLASS_LISTS:
                self._classes.clear()
            self._classes[key] = self._read_classes(names, suffix)
        self.check_fit(self._classes[key], n_ctx)
        return self._classes[key]

    def check_fit(self, classes: ClassTokens, n_ctx: int) -> None:
        """Raise a ValueError that names the classes which do not fit beside `n_ctx` context tokens."""
        room = self.context_length - len(self.head) - n_ctx
        if max(classes.lengths) <= room:
            return
        long = [f"{name!r} ({n} tokens)" for name, n in zip(classes.classnames, classes.lengths) if n > room]
        shown = ", ".join(long[:5]) + (f" and {len(long) - 5} more" if len(long) > 5 else "")
        raise UserError(
            f"the text tower reads {self.context_length} tokens; {len(self.head)} for the start and {n_ctx} for the "
            f"context leave {max(room, 0)} for a class name with {classes.suffix!r} and the end of text, which is too "
            f"few for {shown}; shorten these names or the context (N_CTX, CTX_INIT)"
        )

    def _read_classes(self, names: tuple[str, ...], suffix: str) -> ClassTokens:
        """The tokens of the names, free of the placeholder before them."""
        lead = len(self.head) + self._placeholder_length
        sentences = self._contents([f"{PLACEHOLDER} {name}{suffix}" for name in names])
        bare = self._contents([f"{PLACEHOLDER} {name}" for name in names])
        tokens = [sentence[lead:] for sentence in sentences]
        ids = torch.full((len(names), max(map(len, tokens))), self.pad, dtype=torch.long)
        for row, own in zip(ids, tokens):
            row[: len(own)] = torch.tensor(own)
        name_lengths = [min(len(one) - lead, len(own)) - len(self.tail) for one, own in zip(bare, tokens)]
        return ClassTokens(names, ids, tuple(map(len, tokens)), tuple(name_lengths), suffix)

    def _contents(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The uncut token ids of each text, free of padding."""
        length = 4 * self.context_length
        while True:
            rows = self.tokenizer(list(texts), context_length=length)
            if bool((rows[:, -1] == self.pad).all()) or length >= LONGEST_TEXT:
                break
            length *= 2
        filled = rows != self.pad
        lengths = torch.where(filled.any(1), length - filled.flip(1).int().argmax(1), 0)
        return [tuple(row[:count]) for row, count in zip(rows.tolist(), lengths.tolist())]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    return next((i for i, (one, other) in enumerate(zip(first, second)) if one != other), min(len(first), len(second)))


@lru_cache(maxsize=64)
def prompt_order(
    lengths: tuple[int, ...], name_lengths: tuple[int, ...], first: int, before: int, n_ctx: int
) -> tuple[Tensor, Tensor]:
    """The order of context and class tokens behind the prefix that all classes share.

    Args:
        lengths: Tokens of each class, `S1` at most.
        name_lengths: How many of them come before the second part of the context.
        first: Number of context tokens that the shared prefix holds already.
        before: Number of context tokens before the class name, `first` included.
        n_ctx: `M`.

    Returns:
        `[C, M - first + S1]` twice: True where a context token stands, and the number of that context or class token.
        Padding repeats the class's last token.
    """
    width = n_ctx - first + max(lengths)
    is_context = torch.zeros(len(lengths), width, dtype=torch.bool)
    number = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, (length, name) in enumerate(zip(lengths, name_lengths)):
        parts = [(True, first, before), (False, 0, name), (True, before, n_ctx), (False, name, length)]
        entries = [(context, n) for context, start, stop in parts for n in range(start, stop)]
        entries += [(False, length - 1)] * (width - len(entries))
        is_context[row] = torch.tensor([context for context, _ in entries])
        number[row] = torch.tensor([n for _, n in entries])
    return is_context, number
