"""From icon names to words: what a picture is said to show.

An icon's bare name is cut into tokens. Tokens that several packs use become *concepts*, and so do the phrases of
`lexicon.json`, each with the names that designers give to such a drawing ("mail" and "email" are drawn as an
*envelope*). The concepts of a picture are what its captions speak of and what decides which captions fit it.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

LEXICON_FILE = Path(__file__).with_name("lexicon.json")
MIN_IMAGES = 15
MIN_PACKS = 6
MIN_LETTERS = 3


@lru_cache(maxsize=1)
def read_lexicon() -> dict:
    """`concepts`: phrase to names; `except`: phrase to names that do not count; `noise`: words that say nothing."""
    return json.loads(LEXICON_FILE.read_text(encoding="utf-8"))


def tokens_of(name: str) -> tuple[str, ...]:
    """Lower-case words of a bare icon name, without numbers and noise words."""
    noise = set(read_lexicon()["noise"])
    words = (re.sub(r"\d+", "", word) for word in re.split(r"[-_]+", name.lower()))
    return tuple(word for word in words if word and word not in noise)


def segment(token: str, vocabulary: set[str]) -> tuple[str, ...]:
    """Cut a run-together name ("alarmclock") into known words, the fewest possible; unknown names stay whole."""
    best: list[tuple[str, ...] | None] = [()] + [None] * len(token)
    for end in range(1, len(token) + 1):
        for start in range(max(0, end - 16), end):
            head, word = best[start], token[start:end]
            if head is None or len(word) < MIN_LETTERS or word not in vocabulary:
                continue
            if best[end] is None or len(head) + 1 < len(best[end]):
                best[end] = (*head, word)
    return best[-1] or (token,)


def contains(tokens: Sequence[str], phrase: str) -> bool:
    """Whether the words of the phrase stand next to one another in the tokens."""
    words = phrase.split()
    return any(list(tokens[i : i + len(words)]) == words for i in range(len(tokens) - len(words) + 1))


def lexicon_concepts(tokens: Sequence[str]) -> list[str]:
    """The phrases of the lexicon that a name stands for, in the lexicon's order."""
    lexicon = read_lexicon()
    return [
        concept
        for concept, names in lexicon["concepts"].items()
        if any(contains(tokens, name) for name in names)
        and not any(contains(tokens, name) for name in lexicon["except"].get(concept, ()))
    ]


def common_words(names: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Words in at least `MIN_IMAGES` names of at least `MIN_PACKS` packs, sorted.

    Args:
        names: pairs (pack, tokens), one an icon.
    """
    counts: Counter[str] = Counter()
    packs: defaultdict[str, set[str]] = defaultdict(set)
    for pack, tokens in names:
        for word in set(tokens):
            counts[word] += 1
            packs[word].add(pack)
    return sorted(
        word
        for word, n in counts.items()
        if n >= MIN_IMAGES and len(packs[word]) >= MIN_PACKS and len(word) >= MIN_LETTERS
    )


def concepts_of(tokens: Sequence[str], words: set[str]) -> list[str]:
    """All concepts of a name: phrases of the lexicon, then common words that are not among them."""
    found = lexicon_concepts(tokens)
    return found + [word for word in dict.fromkeys(tokens) if word in words and word not in found]
