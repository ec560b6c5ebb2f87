"""Is the style of the images entangled with the class names? Extra tests of a frozen CLIP on data with domains.

Every test is of one domain. Where a run draws on images of the domain that it does not test (source and target are the
same), these are read, so that a method for `fewshot` may be chosen by what is seen; else the tested ones are.

Shapes: `N` images, `C` classes, `E` joint embedding, `R` directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.clip.styles import estimate_own_styles, style_basis, style_directions, styled_texts, without_styles
from dassl_clip.results.diagnosis import (
    BALANCED,
    FORMS,
    IN_IMAGES,
    IN_TEXTS,
    OTHER,
    OWN,
    OWN_WORD,
    READ_OFF,
    TIED,
    TIED_BY_CHANCE,
    TRUE_WORD,
    WRONG_WORD,
    ZEROSHOT,
)
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

from .evaluation import metrics_of
from .styles import model_own_styles, style_words

if TYPE_CHECKING:
    from .trainer import CLIPTrainer

PLAIN = "a photo of a {}."
BALANCING_STEPS = 50


def domain_word(trainer: CLIPTrainer) -> tuple[list[str], str]:
    """The style words, and that of the one tested domain.

    Raises:
        UserError: there is not one tested domain, or not one word for each domain, each another.
    """
    words, domains = style_words(trainer), [*getattr(trainer.dm.dataset, "domains", ())]
    targets = [*trainer.cfg.DATASET.TARGET_DOMAINS]
    if len(targets) != 1 or len({*words}) != len(domains) or len(words) != len(domains) or len(words) < 2:
        raise UserError(
            "tests of styles need one tested domain of two or more, and for each domain, in their order, a style word "
            f"of its own; got targets {targets}, domains {domains}, words {words}; set DATASET.TARGET_DOMAINS and "
            "DATASET.STYLES"
        )
    return words, words[domains.index(targets[0])]


def untested_images(trainer: CLIPTrainer) -> Sequence[Any]:
    """Images of the tested domain that are not tested, training and validation ones; none for other sources."""
    data, cfg = trainer.dm.dataset, trainer.cfg.DATASET
    if [*cfg.SOURCE_DOMAINS] != [*cfg.TARGET_DOMAINS] or getattr(data, "train_overlaps_test", False):
        return []
    return [*data.train_x, *(data.val or ())]


@torch.no_grad()
def style_tests(trainer: CLIPTrainer, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Metrics by name; those of errors are shares in percent, not accuracies.

    Args:
        trainer: A frozen CLIP, ready to be tested.
        notes: How the tests were made; filled.
    """
    words, style = domain_word(trainer)
    images = untested_images(trainer)
    read = "training and validation images of each domain, which fewshot does not test, but lodo does"
    notes.append(f"styles: read on {read if images else 'the tested images of each domain'}")
    raw, labels = trainer.features.raw(images or trainer.dm.dataset.test)
    features, labels = F.normalize(raw.to(trainer.device), dim=-1), labels.to(trainer.device)
    names = [display_name(name) for name in trainer.classnames]

    def encode(texts: Sequence[str]) -> Tensor:
        return F.normalize(trainer.features.texts(list(texts)), dim=-1)

    scale = float(trainer.logit_scale)

    def metrics(scores: Tensor, chosen: Tensor | None = None, scale: float = scale) -> dict[str, Any]:
        kept = slice(None) if chosen is None else chosen
        return metrics_of(scores[kept], labels[kept], trainer.num_classes, scale)

    plain = encode([PLAIN.replace("{}", name) for name in names])
    scores = features @ plain.T
    yield ZEROSHOT, metrics(scores)
    for form, words_of_form in FORMS.items():
        yield form, metrics(features @ encode([words_of_form.replace("{}", name) for name in names]).T)
    styled = encode(styled_texts(names, words, trainer.cfg.DATASET.STYLE_TEMPLATE)).unflatten(0, (len(words), -1))
    own = model_own_styles(trainer)
    notes.append(f"styles: the own style of each class is {'known' if own else 'estimated from the texts'}")
    estimated = [words[number] for number in estimate_own_styles(styled, plain).tolist()]
    if own and (unknown := sorted({*own} - {*words})):
        raise UserError(
            f"the own styles of classes name {', '.join(unknown)}, which is no style word here; the words are "
            f"{', '.join(words)} (DATASET.STYLES, else the domains)"
        )
    if own:
        yield READ_OFF, share(sum(a == b for a, b in zip(own, estimated)), len(own))
    own = own or estimated
    yield from _by_own_style(metrics, scores, labels, torch.tensor([word == style for word in own]))

    basis = style_basis(style_directions(styled, plain))
    yield IN_TEXTS, metrics(features @ F.normalize(without_styles(plain, basis), dim=-1).T)
    yield IN_IMAGES, metrics(without_styles(features, basis) @ plain.T)
    each = [metrics(features @ prompts.T) for prompts in styled]
    yield TRUE_WORD, each[words.index(style)]
    yield WRONG_WORD, _mean([each[number] for number, word in enumerate(words) if word != style])
    place = torch.tensor([words.index(word) for word in own])
    yield OWN_WORD, metrics(features @ styled[place, torch.arange(len(own))].T)
    yield BALANCED, metrics(balanced(scale * scores), scale=1.0)


def _by_own_style(
    metrics: Any, scores: Tensor, labels: Tensor, of_style: Tensor
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Accuracy on own-style and other images, and where the errors on the others fall.

    Args:
        metrics: Metrics of scores `[N, C]` on chosen images.
        scores: `[N, C]`.
        labels: `[N]`.
        of_style: Whether the style of the images is the class's own one, bool `[C]`.
    """
    is_own = of_style.to(labels.device)[labels]
    for name, chosen in ((OWN, is_own), (OTHER, ~is_own)):
        if chosen.any():
            yield name, metrics(scores, chosen)
    best = scores.argmax(dim=1)
    wrong = best[(best != labels) & ~is_own]
    if len(wrong):
        tied = int(of_style.to(labels.device)[wrong].sum())
        yield TIED, share(tied, len(wrong))
        yield TIED_BY_CHANCE, share(int(of_style.sum()), len(of_style) - 1)  # of the classes that an error can fall on


def share(count: int, total: int) -> dict[str, Any]:
    """A share in percent in the form of metrics."""
    percent = 100 * count / total
    return {"accuracy": percent, "error_rate": 100 - percent, "correct": count, "total": total}


def _mean(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of metrics that differ in the prompt alone."""
    return {
        key: [None if None in values else sum(values) / len(values) for values in zip(*(one[key] for one in each))]
        if isinstance(each[0][key], list)
        else sum(one[key] for one in each) / len(each)
        for key in each[0]
    }


def balanced(logits: Tensor) -> Tensor:
    """Logits `[N, C]` plus one bias per class with which every class has the same share of all images (Sinkhorn)."""
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    logits = logits.double()
    for _ in range(BALANCING_STEPS):
        bias -= (logits + bias).log_softmax(dim=1).logsumexp(dim=0)
        bias -= bias.mean()
    return (logits + bias).float()
