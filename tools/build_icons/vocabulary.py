"""The words whose tokens are kept from CLIP's vocabulary: what captions and prompts of this project can say."""

import csv
import json
from collections import Counter
from pathlib import Path

from .captions import words_of_captions
from .corpus import Corpus
from .selection import CURATED_FILE

WORDS_FILE = Path(__file__).with_name("words.json")
RESERVE_FILE = Path(__file__).with_name("reserve.csv")
MIN_USES = 3


def class_words() -> set[str]:
    """Words of the class names, spare classes included."""
    words: set[str] = set()
    for path in (CURATED_FILE, RESERVE_FILE):
        with path.open(newline="", encoding="utf-8") as file:
            words.update(word for row in csv.DictReader(file) for word in row["class"].split())
    return words


def vocabulary_words(corpus: Corpus) -> list[str]:
    """Words of word list, captions, classes and concepts, and those that three names or more have, sorted."""
    uses = Counter(word for phrase in corpus.phrases for word in set(phrase.split()))
    words = {word for word, n in uses.items() if n >= MIN_USES}
    words.update(word for concept in corpus.vocabulary for word in concept.split())
    words.update(json.loads(WORDS_FILE.read_text(encoding="utf-8")), words_of_captions(), class_words())
    return sorted(words)
