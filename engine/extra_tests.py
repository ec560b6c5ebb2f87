"""Extra tests of frozen features: prompt forms, few-shot probes, attacked images.

Source: Cai et al., ECCV 2024 (arXiv 2311.16445): the prompt forms C, CP, PC and NC (Table 3), linear probes on a few
images of the tested domain, and FGSM, PGD-20 and CW-20 against the class names (zero-shot) and the 1-shot probe (Table
5). The engine runs them on the test images, for methods whose class names them in `extra_tests`; their metrics stand
beside `test` in the record.

Two deviations from the authors' program. The noise of NC is drawn from the seed and averaged over draws, so it does not
depend on the batch size (`NC_PER_BATCH` restores one draw per batch). Attacks work on pixels in [0, 1] with the
normalisation inside the model, and attack what is tested. `ATTACK_SPACE: authors` attacks normalised pixels, clamps
those to [0, 1], and attacks the 1-shot probe through features that are not normalised, though the probe is trained and
tested on normalised ones.

Shapes: `N` images, `C` classes, `E` joint embedding.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from dassl_clip.clip import attacks
from dassl_clip.clip.probe import IN_ALL, STOPPING, fit_linear_probe
from dassl_clip.clip.prompts import noise_context, noise_features
from dassl_clip.results.diagnosis import FORMS
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

from .data import mix_seed, progress_bar
from .evaluation import metrics_of
from .scenario_tests import ScenarioTests
from .style_tests import style_tests

if TYPE_CHECKING:
    from .trainer import CLIPTrainer

logger = logging.getLogger(__name__)

NOISE = "NC"  # the class name after noise tokens
ATTACKED_FORM = "C"
ATTACK_TARGETS = ("zero-shot", "1-shot")
ATTACK_SPACES = {"pixels": "pixels in [0, 1]", "authors": "normalised pixels, clamped to [0, 1]"}
PROBE_TESTS = {"all": "all of them, the shots included", "without-shots": "those that were not drawn"}

EXTRA_TEST_SETTINGS: Mapping[str, Any] = {
    "EVALUATE": (),  # the extra tests to run, of those that the method can take
    "NC_DRAWS": 8,  # draws of the noise, over which NC's accuracy is averaged
    "NC_PER_BATCH": False,  # one draw for each test batch instead, as the authors' program
    "NC_TOKENS": 4,
    "NC_STD": 0.02,
    "PROBE_SHOTS": (1, 4, 8, 16, 32),  # images per class
    "PROBE_STOPPING": IN_ALL,  # in-all or in-a-row: which epochs without a drop end the fit (`clip/probe.py`)
    "PROBE_TEST": "all",  # all tested images, the shots included, or without-shots
    "ATTACKS": ("FGSM", "PGD-20", "CW-20"),
    "ATTACK_EPSILON": 0.031,
    "ATTACK_SPACE": "pixels",  # pixels or authors
    "ATTACK_TARGETS": ATTACK_TARGETS,
    "ATTACK_IMAGES": 0,  # most images to attack, a seeded draw of the tested ones; 0: all
}


def check_extra_tests(name: str, node: CfgNode, extra_tests: Sequence[str]) -> None:
    """Refuse impossible values of `EXTRA_TEST_SETTINGS`.

    Raises:
        UserError: A value is not among those that exist, or a number is too small.
    """
    choices = {
        "EVALUATE": extra_tests,
        "ATTACKS": tuple(attacks.ATTACKS),
        "ATTACK_TARGETS": ATTACK_TARGETS,
        "PROBE_STOPPING": STOPPING,
        "PROBE_TEST": tuple(PROBE_TESTS),
        "ATTACK_SPACE": tuple(ATTACK_SPACES),
    }
    for key, known in choices.items():
        values = (node[key],) if isinstance(node[key], str) else tuple(node[key])
        if not set(values) <= set(known):
            raise UserError(f"TRAINER.{name}.{key} is {node[key]!r}; expected any of {', '.join(known)}")
    for key in ("NC_DRAWS", "NC_TOKENS"):
        if node[key] < 1:
            raise UserError(f"TRAINER.{name}.{key} is {node[key]}; expected at least 1")
    if min(node.PROBE_SHOTS, default=1) < 1 or node.ATTACK_EPSILON <= 0:
        raise UserError(
            f"TRAINER.{name}.PROBE_SHOTS are images per class, at least 1, and ATTACK_EPSILON is positive; got "
            f"{tuple(node.PROBE_SHOTS)} and {node.ATTACK_EPSILON}"
        )


def further_tests(trainer: "CLIPTrainer") -> None:
    """Make the extra tests and scenarios that a run asks for on the tested images, beside its evaluation."""
    evaluation = trainer.evaluation
    if trainer.extra_tests:
        extra = ExtraTests(trainer)
        evaluation.results |= extra.run()
        evaluation.notes = extra.notes
    if trainer.cfg.SCENARIOS.TASK:
        scenarios = ScenarioTests(trainer)
        evaluation.results |= scenarios.run()
        evaluation.scenarios = scenarios.facts


class ExtraTests:
    """The extra tests of a trainer whose method is ready to be tested.

    Attributes:
        notes: How the tests were made, for the record.
    """

    def __init__(self, trainer: "CLIPTrainer") -> None:
        self.trainer, self.node, self.scale = trainer, trainer.node, float(trainer.logit_scale)
        self.images = trainer.test_loader.dataset.data_source
        self.notes: list[str] = []

    def run(self) -> dict[str, dict[str, Any]]:
        """Metrics of every classifier of the tests in `EVALUATE`, by its name in the record."""
        results = {}
        for name in self.node.EVALUATE:
            logger.info("extra test: %s", name)
            tests = {"forms": self.forms, "probe": self.probe, "attacks": self.attacks, "styles": self.styles}
            for classifier, metrics in tests[name]():
                results[classifier] = metrics
                logger.info("* %s: %.2f%%", classifier, metrics["accuracy"])
        return results

    def forms(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Metrics of the class names in each prompt form."""
        features, labels = self._features()
        batch_size = self.trainer.test_loader.batch_size
        if self.node.NC_PER_BATCH:
            batches = features.split(batch_size)
            proxies = self._proxies(draws=len(batches))
            logits = torch.cat([batch @ proxy.T for batch, proxy in zip(batches, proxies[NOISE])])
            noise = metrics_of(logits, labels, self.trainer.num_classes, self.scale)
            self.notes.append(f"NC: one draw of the noise for each batch of {batch_size} images")
        else:
            proxies = self._proxies(self.node.NC_DRAWS)
            noise = self._mean_metrics(features, labels, proxies[NOISE])
            self.notes.append(f"NC: mean over {self.node.NC_DRAWS} draws of the noise")
        for form in FORMS:
            yield form, self._mean_metrics(features, labels, proxies[form])
        yield NOISE, noise

    def probe(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Metrics of a linear probe for each number of shots."""
        features, labels = self._features()
        self.notes.append(f"probes: shots drawn from the tested images, tested on {PROBE_TESTS[self.node.PROBE_TEST]}")
        for shots in self.node.PROBE_SHOTS:
            classifier, index = self._fit_probe(features, labels, shots)
            tested = torch.ones_like(labels, dtype=torch.bool)
            if self.node.PROBE_TEST == "without-shots":
                tested[index] = False
            if not tested.any():
                logger.warning("no image is left to test the %d-shot probe on", shots)
                continue
            metrics = metrics_of(classifier(features[tested]), labels[tested], self.trainer.num_classes, 1.0)
            yield f"{shots}-shot", metrics | {"shots_drawn": len(index)}

    def attacks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Metrics of the prompt forms, and of the 1-shot probe, on images that were attacked to fool them."""
        node, seed = self.node, self.trainer.cfg.SEED
        index = {"zero-shot": list(range(len(self.images)))}
        if 0 < node.ATTACK_IMAGES < len(self.images):
            index["zero-shot"] = sorted(random.Random(seed).sample(range(len(self.images)), node.ATTACK_IMAGES))
            self.notes.append(f"attacks: on {node.ATTACK_IMAGES} of {len(self.images)} tested images, a seeded draw")
        space = ATTACK_SPACES[node.ATTACK_SPACE]
        self.notes.append(f"attacks: {space}, epsilon {node.ATTACK_EPSILON:g}, on plain cosines with C")
        proxies = self._proxies(node.NC_DRAWS)
        classifiers = {"zero-shot": lambda features: features @ proxies[ATTACKED_FORM][0].T}
        if "1-shot" in node.ATTACK_TARGETS:
            classifiers["1-shot"], shots = self._fit_probe(*self._features(), shots=1)
            left_out = set() if node.PROBE_TEST == "all" else set(shots.tolist())
            index["1-shot"] = [number for number in index["zero-shot"] if number not in left_out]
            included = "included" if node.PROBE_TEST == "all" else "left out"
            self.notes.append(f"attacks on the 1-shot probe: the images that it was trained on are {included}")
            if node.ATTACK_SPACE == "authors":
                note = "attacks on the 1-shot probe: through features that are not normalised, read on normalised ones"
                self.notes.append(note)
        for name in node.ATTACKS:
            for target in node.ATTACK_TARGETS:
                if not index[target]:
                    logger.warning("no image is left to attack the %s classifier with", target)
                    continue
                normalize = target == "zero-shot" or node.ATTACK_SPACE == "pixels"
                images = [self.images[number] for number in index[target]]
                features, labels = self._attacked(images, name, classifiers[target], normalize)
                if target == "zero-shot":
                    for form in (*FORMS, NOISE):
                        yield f"{name} / {form}", self._mean_metrics(features, labels, proxies[form])
                else:
                    metrics = metrics_of(classifiers[target](features), labels, self.trainer.num_classes, 1.0)
                    yield f"{name} / {target}", metrics

    def styles(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Metrics that show whether style and class names are entangled."""
        return style_tests(self.trainer, self.notes)

    def _features(self) -> tuple[Tensor, Tensor]:
        """Normalised content features `[N, E]` of the tested images, and their labels `[N]`."""
        trainer = self.trainer
        features, labels = trainer.features.raw(self.images)
        with torch.no_grad():
            return F.normalize(trainer.content(features.to(trainer.device)), dim=-1), labels.to(trainer.device)

    @torch.no_grad()
    def _proxies(self, draws: int) -> dict[str, Tensor]:
        """Normalised content features of the class names in each form: `[1, C, E]`, for NC `[draws, C, E]`."""
        trainer, node = self.trainer, self.node
        names = [display_name(name) for name in trainer.classnames]
        raw = {
            form: trainer.features.texts([words.replace("{}", name) for name in names])[None]
            for form, words in FORMS.items()
        }
        generator = torch.Generator().manual_seed(mix_seed(trainer.cfg.SEED, 0))
        context = noise_context(node.NC_TOKENS, trainer.backbone.text_width, node.NC_STD, generator, draws)
        with trainer.precision.autocast():
            raw[NOISE] = noise_features(trainer.backbone.text, names, context).float()
        return {form: F.normalize(trainer.content(features), dim=-1) for form, features in raw.items()}

    def _mean_metrics(self, features: Tensor, labels: Tensor, proxies: Tensor) -> dict[str, Any]:
        """Metrics of features `[N, E]` under proxies `[draws, C, E]`: the means over the draws."""
        draws = [metrics_of(features @ proxy.T, labels, self.trainer.num_classes, self.scale) for proxy in proxies]
        if len(draws) == 1:
            return draws[0]
        means: dict[str, Any] = {}
        for key, first in draws[0].items():
            values: list[Any] = [draw[key] for draw in draws]
            if isinstance(first, list):
                means[key] = [None if c[0] is None else sum(c) / len(c) for c in zip(*values)]
            else:
                means[key] = sum(values) / len(values)
        return means | {"draws": [draw["accuracy"] for draw in draws]}

    def _fit_probe(self, features: Tensor, labels: Tensor, shots: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """A probe of `shots` images per class (all, where there are fewer), drawn from the split seed.

        Returns:
            The probe as a function of normalised features, and the numbers of its images.
        """
        cfg = self.trainer.cfg
        by_class: dict[int, list[int]] = {}
        for number, label in enumerate(labels.tolist()):
            by_class.setdefault(label, []).append(number)
        split_seed = cfg.DATASET.get("SPLIT_SEED", -1)
        generator = random.Random(split_seed if split_seed >= 0 else cfg.SEED)
        drawn = (generator.sample(numbers, min(shots, len(numbers))) for _, numbers in sorted(by_class.items()))
        index = torch.tensor([number for numbers in drawn for number in numbers], device=labels.device)
        seed, stopping = mix_seed(cfg.SEED, shots), self.node.PROBE_STOPPING
        weight, bias = fit_linear_probe(
            features[index], labels[index], self.trainer.num_classes, seed=seed, stopping=stopping
        )
        return lambda features: F.linear(features, weight, bias), index

    def _attacked(
        self, items: Sequence[Any], name: str, classifier: Callable[[Tensor], Tensor], normalize: bool
    ) -> tuple[Tensor, Tensor]:
        """Normalised content features `[N, E]` of attacked images, and their labels `[N]`.

        Args:
            items: List of Datum.
            name: The attack.
            classifier: Content features `[B, E]` to logits `[B, C]`, which the attack goes through.
            normalize: Whether the attack gives it normalised features.
        """
        trainer, backbone, node = self.trainer, self.trainer.backbone, self.node

        def embed(images: Tensor) -> Tensor:
            with trainer.precision.autocast():
                raw = backbone.embed_image(images, normalize=False)
            return trainer.content(raw)

        def logits(images: Tensor) -> Tensor:
            return classifier(F.normalize(content(images), dim=-1) if normalize else content(images))

        in_pixels = node.ATTACK_SPACE == "pixels"
        content = attacks.pixel_space(embed, backbone.pixel_mean, backbone.pixel_std) if in_pixels else embed
        generator = torch.Generator().manual_seed(mix_seed(trainer.cfg.SEED, 1))
        features: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in progress_bar(trainer.features.loader(items), name):
            images, truth = trainer.parse_batch_test(batch)
            if in_pixels:
                images = attacks.to_pixels(images, backbone.pixel_mean, backbone.pixel_std)
            attacked = attacks.attack(name, logits, images, truth, node.ATTACK_EPSILON, generator=generator)
            with torch.no_grad():
                features.append(F.normalize(content(attacked), dim=-1))
            labels.append(truth)
        return torch.cat(features), torch.cat(labels)
