"""CLAP's training texts and their augmentation.

Source: Cai et al., "CLAP: Isolating Content from Style through Contrastive Learning with Augmented Prompts", ECCV 2024
(arXiv 2311.16445). The paper names the augmentations OSD and OCD (the object's size and colour are dropped), ITD and
ASD (image type and art style are dropped), SPO (the prompt's order is swapped) and IGN (Gaussian noise tokens are
inserted). Each is a decision of its own; `drop_type_style` drops type and style by one decision. The texts are finite
in number, so `TextTables` lists each one once, and a training step reads features of the list by index (`training.py`).

Shapes: `C` classes, `K` distinct texts, `R` training texts of all classes, `A` augmented forms of each.
"""

import random
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

TYPES = ("painting", "sketch", "cartoon", "clipart", "photograph", "infograph", "mosaic art", "sculpture")
SIZES = ("large", "normal sized", "small")
STYLES = ("realistic", "impressionistic")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "black", "white", "brown", "multicolored")


@dataclass(frozen=True)
class PromptWords:
    """The words of one training text: the class name as it stands there, and one of each of the lists above."""

    classname: str
    type: str
    size: str
    style: str
    colour: str

    def render(
        self,
        drop_size: bool = False,
        drop_colour: bool = False,
        drop_type_style: bool = False,
        swap: bool = False,
        drop_type: bool = False,
        drop_style: bool = False,
    ) -> str:
        """The text "a(n) [style] [type] of a(n) [size] [colour] [class]", or an augmented form of it.

        Each article belongs to its place and is that of the full text, chosen by the size's and the style's first
        letter; it stays as it is when words behind it go ("a orange dog", "a apple").

        Args:
            drop_size: Leave the size out.
            drop_colour: Leave the colour out.
            drop_type_style: Leave out type and style and the word that joins them: "a large red dog", swapped or not.
            swap: "a(n) [size] [colour] [class] in a(n) [style] [type] style".
            drop_type: Leave the type out; with `drop_style`, as `drop_type_style`.
            drop_style: Leave the style out.
        """
        before_size, before_style = ("an" if word[0] in "aeiou" else "a" for word in (self.size, self.style))
        parts = [before_size, "" if drop_size else self.size, "" if drop_colour else self.colour, self.classname]
        thing = " ".join(filter(None, parts))
        if drop_type_style or (drop_type and drop_style):
            return thing
        words = [before_style, "" if drop_style else self.style, "" if drop_type else self.type]
        picture = " ".join(filter(None, words))
        return f"{thing} in {picture} style" if swap else f"{picture} of {thing}"


def prompt_words(classname: str) -> list[PromptWords]:
    """The 480 combinations of words for a class, nested type, size, style, colour."""
    name = display_name(classname)
    return [PromptWords(name, *words) for words in product(TYPES, SIZES, STYLES, COLOURS)]


def training_texts(classname: str) -> list[str]:
    """The 480 training texts of a class, nested type, size, style, colour."""
    return [words.render() for words in prompt_words(classname)]


def _check_probabilities(**chances: float) -> None:
    for name, value in chances.items():
        if not 0 <= value <= 1:
            raise UserError(f"the probability {name} of an augmentation must lie between 0 and 1, got {value}")


@dataclass(frozen=True)
class Augmentation:
    """How often each augmentation of a template text happens; the decisions are independent of each other.

    Attributes:
        drop_size: Probability that the size goes.
        drop_colour: Probability that the colour goes.
        drop_type_style: Probability that type and style go, by one decision.
        swap: Probability that the order is swapped.
        drop_type: Probability that the type goes.
        drop_style: Probability that the style goes.
    """

    drop_size: float = 0.5
    drop_colour: float = 0.5
    drop_type_style: float = 0.0
    swap: float = 0.5
    drop_type: float = 0.0
    drop_style: float = 0.0

    def __post_init__(self) -> None:
        _check_probabilities(**vars(self))

    def outcomes(self) -> dict[tuple[bool, ...], float]:
        """Probability of each set of decisions that can happen, in the order of `render`'s arguments."""
        chances = tuple(vars(self).values())  # the fields stand in that order
        every = {}
        for decisions in product((False, True), repeat=len(chances)):
            every[decisions] = prod(chance if decision else 1 - chance for decision, chance in zip(decisions, chances))
        return {decisions: probability for decisions, probability in every.items() if probability}


# --------------------------------------------------------------------------------------------- other prompt sources


def random_word_texts(classname: str, seed: int = 0) -> list[str]:
    """480 texts of a class with 1 to 4 random words before the name and 0 to 4 after it, of 3 to 8 letters each.

    The words depend on the seed, not on the class.
    """
    name, draw = display_name(classname), random.Random(seed)

    def words(fewest: int) -> list[str]:
        number = draw.randint(fewest, 4)
        return ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 8))) for _ in range(number)]

    return [" ".join([*words(1), name, *words(0)]) for _ in range(480)]


def file_texts(classname: str, lines: Iterable[str]) -> list[str]:
    """The texts that the lines of a prompt file give a class.

    Args:
        classname: The class name.
        lines: Each a text with one `{}` for the class name, which serves all classes; or a class name, a tab, and such
            a text, which serves that class alone (blanks and underscores, capital and small letters count alike).
            Empty lines and lines that begin with `#` are skipped.

    Returns:
        The class's texts in the order of the lines.

    Raises:
        UserError: A line has no `{}` or several, or no line is for this class.
    """
    name, texts = display_name(classname), []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        owner, tab, own = line.partition("\t")
        text = (own if tab else line).strip()
        if text.count("{}") != 1:
            raise UserError(
                f"line {number} of the prompt texts needs exactly one {{}} for the class name, as in "
                f"'a photo of a {{}}'; got {line!r}"
            )
        if not tab or owner.replace("_", " ").strip().casefold() == name.casefold():
            texts.append(text.replace("{}", name))
    if not texts:
        raise UserError(
            f"the prompt texts have no text for the class {name!r}; add lines with {{}} for the class name, which "
            f"serve all classes, or a line '{name}<tab>text with {{}}'"
        )
    return texts


@dataclass(frozen=True)
class WordDropping:
    """The augmentation of texts that are not made of the template: random words go, and the order is swapped.

    Each augmented form drops each word beside the class name with probability `drop`, and with probability `swap`
    exchanges what stands before the name with what stands after it. Each text has `forms` augmented forms, drawn once
    from the seed and the text, so that all texts stay finite in number; a training step takes one of them.

    Attributes:
        drop: Probability that a word goes.
        swap: Probability that the two sides are exchanged.
        forms: Augmented forms of each text.
        seed: Seed of the forms.
    """

    drop: float = 0.25
    swap: float = 0.5
    forms: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        _check_probabilities(drop=self.drop, swap=self.swap)

    def augmented(self, text: str, classname: str) -> list[str]:
        """The `forms` augmented forms of a text; punctuation attached to the class name stays with it."""
        name = display_name(classname)
        found = re.search(rf"\S*(?<!\w){re.escape(name)}(?!\w)\S*", text)
        middle = found.group() if found else ""
        before, after = (text[: found.start()], text[found.end() :]) if found else (text, "")
        draw = random.Random(f"{self.seed} {text}")
        forms = []
        for _ in range(self.forms):
            sides = [[word for word in side.split() if draw.random() >= self.drop] for side in (before, after)]
            if draw.random() < self.swap:
                sides.reverse()
            words = [*sides[0], middle, *sides[1]]
            forms.append(" ".join(word for word in words if word) or text)
        return forms


# ---------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class TextTables:
    """All texts of a training run, each once, and where each training text and its augmented forms stand among them.

    The `R` training texts are laid class after class. All indices are on the CPU.

    Attributes:
        classnames: The `C` names as they stand in texts.
        texts: The `K` distinct texts; their features are `TextPairs`' `features [K, E]`.
        names: `[C]`, the text that is the class name alone.
        prompts: `[R]`, the training texts.
        augmented: `[R, A]`, their augmented forms.
        probabilities: `[A]`, how often each form is taken.
        counts: `[C]`, training texts of each class.
    """

    classnames: tuple[str, ...]
    texts: tuple[str, ...]
    names: Tensor
    prompts: Tensor
    augmented: Tensor
    probabilities: Tensor
    counts: Tensor


def template_tables(classnames: Sequence[str], augmentation: Augmentation = Augmentation()) -> TextTables:
    """The tables of the 480 template texts a class."""
    outcomes = augmentation.outcomes()
    shared = _places((words.render(), [words.render(*d) for d in outcomes]) for words in prompt_words("{}"))
    names = [display_name(name) for name in classnames]
    classes = (([text.replace("{}", name) for text in shared[0]], *shared[1:]) for name in names)
    return _tables(names, classes, list(outcomes.values()))


def source_tables(
    classnames: Sequence[str], texts: Sequence[Sequence[str]], dropping: WordDropping = WordDropping()
) -> TextTables:
    """The tables of other texts, such as those of `random_word_texts` or `file_texts`.

    Args:
        classnames: `C` class names.
        texts: For each class its texts, class name included; classes may have different numbers of them.
        dropping: How the texts are augmented.
    """
    names = [display_name(name) for name in classnames]
    classes = (
        _places((text, dropping.augmented(text, name)) for text in own) for name, own in zip(names, texts, strict=True)
    )
    return _tables(names, classes, [1 / dropping.forms] * dropping.forms)


def _places(rows: Iterable[tuple[str, list[str]]]) -> tuple[list[str], Tensor, Tensor]:
    """The distinct texts of rows of a text and its augmented forms, and where they stand: `[R]` and `[R, A]`."""
    place: dict[str, int] = {}
    index = [[place.setdefault(text, len(place)) for text in (prompt, *forms)] for prompt, forms in rows]
    table = torch.tensor(index)
    return list(place), table[:, 0], table[:, 1:]


def _tables(
    names: Sequence[str], classes: Iterable[tuple[list[str], Tensor, Tensor]], probabilities: Sequence[float]
) -> TextTables:
    """The tables of all classes, of each class's distinct texts and the places of its prompts and forms in them."""
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    prompts, augmented = [], []
    for texts, own_prompts, own_augmented in classes:
        index = torch.tensor([place.setdefault(text, len(place)) for text in texts])
        prompts.append(index[own_prompts])
        augmented.append(index[own_augmented])
    return TextTables(
        classnames=tuple(names),
        texts=tuple(place),
        names=torch.tensor([place[name] for name in names]),
        prompts=torch.cat(prompts),
        augmented=torch.cat(augmented),
        probabilities=torch.tensor(probabilities, dtype=torch.float64),
        counts=torch.tensor([len(own) for own in prompts]),
    )
