"""CLIP's byte-pair merges, cut down to those that a vocabulary needs.

The kept merges are closed under their parts and stay in CLIP's order, so that every word of the vocabulary is cut as
CLIP cuts it, any other text still has tokens (shorter pieces), and open_clip's `SimpleTokenizer(bpe_path=...)` reads
the file as it is: start of text and end of text are the two largest ids.
"""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, get_pairs

HEADER = '"bpe merges of CLIP, restricted'


def merges_of_word(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that CLIP applies to one word (already mapped to its byte alphabet), in the order it applies them."""
    symbols = (*word[:-1], word[-1] + "</w>")
    applied = []
    while len(symbols) > 1:
        pair = min(get_pairs(symbols), key=lambda candidate: ranks.get(candidate, float("inf")))
        if pair not in ranks:
            break
        applied.append(pair)
        joined, i = [], 0
        while i < len(symbols):
            if symbols[i : i + 2] == pair:
                joined.append("".join(pair))
                i += 2
            else:
                joined.append(symbols[i])
                i += 1
        symbols = tuple(joined)
    return applied


def restricted_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """CLIP's merges needed for the words, in CLIP's order."""
    clip = SimpleTokenizer()
    needed = set()
    for word in words:
        for piece in clip.pat.findall(word.lower()):
            mapped = "".join(clip.byte_encoder[byte] for byte in piece.encode("utf-8"))
            needed.update(merges_of_word(mapped, clip.bpe_ranks))
    return sorted(needed, key=clip.bpe_ranks.__getitem__)


def write_merges(merges: Iterable[tuple[str, str]], path: Path) -> None:
    """Write the merges as open_clip's tokenizer reads them; the bytes depend on the merges alone."""
    text = "\n".join([HEADER, *(" ".join(pair) for pair in merges)])
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as archive:
        archive.write(text.encode("utf-8"))
    path.write_bytes(buffer.getvalue())
