"""Further readings of frozen features: prompt forms, few-shot probes, attacked images.

Source: Cai et al., "CLAP: Isolating Content from Style through Contrastive Learning with Augmented Prompts", ECCV 2024:
the prompt forms C, CP, PC and NC (Table 3), linear probes on a few images of the tested domain, and FGSM, PGD-20 and
CW-20 against the class names (zero-shot) and the 1-shot probe (Table 5). A trainer with this mixin reads the same
images in all these ways; what comes out stands beside `test` in the record's metrics.

Two deviations from the authors' program. The noise of NC is drawn from the seed and averaged over draws, so it does not
depend on the batch size (`NC_PER_BATCH` restores one draw per batch). Attacks work on pixels in [0, 1] with the
normalisation inside the model, and attack what is read. `ATTACK_SPACE: authors` attacks normalised pixels, clamps those
to [0, 1], and attacks the 1-shot probe through head features that are not normalised, though the probe is trained and
read on normalised ones.

Shapes: `N` images, `C` classes, `E` joint embedding.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from dassl_clip.clip import attacks
from dassl_clip.clip.probe import IN_ALL, STOPPING, fit_linear_probe
from dassl_clip.clip.prompts import noise_context, noise_features
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

from .data import mix_seed, progress_bar
from .evaluation import reading

logger = logging.getLogger(__name__)

KINDS = ("forms", "probe", "attacks")
TEMPLATES = {"C": "clap_c", "CP": "clap_cp", "PC": "clap_pc"}
NOISE = "NC"
FORMS = (*TEMPLATES, NOISE)
PROBE_TESTS = ("all", "without-shots")
ATTACK_SPACES = ("pixels", "authors")
ATTACK_TARGETS = ("zero-shot", "1-shot")
ATTACKED_FORM = "C"

KEYS = {
    "EVALUATE": (),  # any of forms, probe, attacks
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


def check_keys(name: str, node: CfgNode) -> None:
    """Refuse impossible values of `KEYS` in a trainer's node.

    Raises:
        UserError: A value is not among those that exist, or a number is too small.
    """
    known = {
        "EVALUATE": KINDS,
        "ATTACKS": tuple(attacks.ATTACKS),
        "ATTACK_TARGETS": ATTACK_TARGETS,
        "PROBE_STOPPING": STOPPING,
        "PROBE_TEST": PROBE_TESTS,
        "ATTACK_SPACE": ATTACK_SPACES,
    }
    for key, values in known.items():
        given = (node[key],) if isinstance(node[key], str) else tuple(node[key])
        wrong = [value for value in given if value not in values]
        if wrong:
            raise UserError(f"TRAINER.{name}.{key} is {node[key]!r}; expected any of {', '.join(values)}")
    for key in ("NC_DRAWS", "NC_TOKENS"):
        if node[key] < 1:
            raise UserError(f"TRAINER.{name}.{key} is {node[key]}; expected at least 1")
    if min(node.PROBE_SHOTS, default=1) < 1 or node.ATTACK_EPSILON <= 0:
        raise UserError(
            f"TRAINER.{name}.PROBE_SHOTS are images per class, at least 1, and ATTACK_EPSILON is positive; got "
            f"{tuple(node.PROBE_SHOTS)} and {node.ATTACK_EPSILON}"
        )


class ReadingsMixin:
    """Reads the tested images in further ways, after the test itself. Goes before the trainer in the bases."""

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split; on the test images, take the readings of `EVALUATE` too."""
        value = super().test(split)
        if (split or self.cfg.TEST.SPLIT) == "test" and self.node.EVALUATE:
            self.reading_notes: list[str] = []
            for kind in self.node.EVALUATE:
                logger.info("further readings: %s", kind)
                for name, found in getattr(self, f"_read_{kind}")():
                    self.evaluation.results[name] = found
                    logger.info("* %s: %.2f%%", name, found["accuracy"])
        return value

    def record_facts(self) -> dict:
        """Also how the readings were taken."""
        return super().record_facts() | {"reading_notes": getattr(self, "reading_notes", [])}

    @torch.no_grad()
    def form_proxies(self, draws: int | None = None) -> dict[str, Tensor]:
        """Normalised content features of the class names in each form: `[1, C, E]`, for NC `[draws, C, E]`."""
        names = [display_name(name) for name in self.classnames]
        proxies = {}
        for form, template in TEMPLATES.items():
            (words,) = resolve_templates(template)
            proxies[form] = self.features.texts([words.replace("{}", name) for name in names])[None]
        node, generator = self.node, torch.Generator().manual_seed(mix_seed(self.cfg.SEED, 0))
        context = noise_context(
            node.NC_TOKENS, self.backbone.text_width, node.NC_STD, generator, draws or node.NC_DRAWS
        )
        with self.precision.autocast():
            proxies[NOISE] = noise_features(self.backbone.text, names, context).float()
        return {form: F.normalize(self.content(raw), dim=-1) for form, raw in proxies.items()}

    def _test_content(self) -> tuple[Tensor, Tensor]:
        """Normalised content features `[N, E]` of the tested images, and their labels `[N]`."""
        features, labels = self.features.raw(self.test_loader.dataset.data_source)
        with torch.no_grad():
            return F.normalize(self.content(features.to(self.device)), dim=-1), labels.to(self.device)

    def _read_forms(self) -> Iterator[tuple[str, dict]]:
        features, labels = self._test_content()
        size, per_batch = self.test_loader.batch_size, self.node.NC_PER_BATCH
        proxies = self.form_proxies(-(-len(labels) // size) if per_batch else None)
        if per_batch:
            batches = features.split(size)
            scores = torch.cat([batch @ proxy.T for batch, proxy in zip(batches, proxies[NOISE])])
            noisy = reading(scores, labels, self.num_classes)
            self.reading_notes.append(f"NC: one draw of the noise for each batch of {size} images")
        else:
            noisy = self._averaged(features, labels, proxies[NOISE])
            self.reading_notes.append(f"NC: mean over {len(proxies[NOISE])} draws of the noise")
        for form in TEMPLATES:
            yield form, self._averaged(features, labels, proxies[form])
        yield NOISE, noisy

    def _averaged(self, features: Tensor, labels: Tensor, proxies: Tensor) -> dict:
        """The reading of features `[N, E]` by proxies `[draws, C, E]`: the mean over the draws."""
        draws = [reading(features @ proxy.T, labels, self.num_classes) for proxy in proxies]
        if len(draws) == 1:
            return draws[0]
        mean: dict = {}
        for key, first in draws[0].items():
            values = [draw[key] for draw in draws]
            if isinstance(first, list):
                mean[key] = [None if c[0] is None else sum(c) / len(c) for c in zip(*values)]
            else:
                mean[key] = sum(values) / len(values)
        return mean | {"draws": [draw["accuracy"] for draw in draws]}

    def _draw_shots(self, labels: Sequence[int], shots: int) -> list[int]:
        """Places of `shots` images of each class (of all, where there are fewer), drawn from the split seed."""
        places: dict[int, list[int]] = {}
        for place, label in enumerate(labels):
            places.setdefault(label, []).append(place)
        seed = self.cfg.DATASET.get("SPLIT_SEED", -1)
        generator = random.Random(seed if seed >= 0 else self.cfg.SEED)
        return [i for _, own in sorted(places.items()) for i in generator.sample(own, min(shots, len(own)))]

    def _probe(self, features: Tensor, labels: Tensor, shots: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """A probe of a few images per class, as a function of normalised features, and the places of its images."""
        places = torch.tensor(self._draw_shots(labels.tolist(), shots), device=labels.device)
        seed, stopping = mix_seed(self.cfg.SEED, shots), self.node.PROBE_STOPPING
        weight, bias = fit_linear_probe(
            features[places], labels[places], self.num_classes, seed=seed, stopping=stopping
        )
        return lambda rows: F.linear(rows, weight, bias), places

    def _read_probe(self) -> Iterator[tuple[str, dict]]:
        features, labels = self._test_content()
        included = self.node.PROBE_TEST == "all"
        tested = "all of them, the shots included" if included else "those that were not drawn"
        self.reading_notes.append(f"probes: shots drawn from the tested images, tested on {tested}")
        for shots in self.node.PROBE_SHOTS:
            probe, places = self._probe(features, labels, shots)
            kept = torch.ones_like(labels, dtype=torch.bool)
            if not included:
                kept[places] = False
            if not kept.any():
                logger.warning("no image is left to test the %d-shot probe on", shots)
                continue
            found = reading(probe(features[kept]), labels[kept], self.num_classes)
            yield f"{shots}-shot", found | {"shots_drawn": len(places)}

    def _read_attacks(self) -> Iterator[tuple[str, dict]]:
        items, node = self.test_loader.dataset.data_source, self.node
        places = {"zero-shot": list(range(len(items)))}
        if 0 < node.ATTACK_IMAGES < len(items):
            places["zero-shot"] = sorted(random.Random(self.cfg.SEED).sample(range(len(items)), node.ATTACK_IMAGES))
            self.reading_notes.append(f"attacks: on {node.ATTACK_IMAGES} of {len(items)} tested images, a seeded draw")
        space = {"pixels": "pixels in [0, 1]", "authors": "normalised pixels, clamped to [0, 1]"}[node.ATTACK_SPACE]
        self.reading_notes.append(f"attacks: {space}, epsilon {node.ATTACK_EPSILON:g}, on plain cosines with C")
        proxies = self.form_proxies()
        readers = {"zero-shot": lambda rows: rows @ proxies[ATTACKED_FORM][0].T}
        if "1-shot" in node.ATTACK_TARGETS:
            readers["1-shot"], drawn = self._probe(*self._test_content(), 1)
            left_out = set() if node.PROBE_TEST == "all" else set(drawn.tolist())
            places["1-shot"] = [place for place in places["zero-shot"] if place not in left_out]
            tested = "included" if node.PROBE_TEST == "all" else "left out"
            self.reading_notes.append(f"attacks on the 1-shot probe: the images that it was trained on are {tested}")
            if node.ATTACK_SPACE == "authors":
                note = "attacks on the 1-shot probe: through features that are not normalised, read on normalised ones"
                self.reading_notes.append(note)
        for name in node.ATTACKS:
            for target in node.ATTACK_TARGETS:
                if not places[target]:
                    logger.warning("no image is left to attack the %s reading with", target)
                    continue
                plain = target == "1-shot" and node.ATTACK_SPACE == "authors"
                attacked = [items[i] for i in places[target]]
                features, labels = self._attacked(attacked, name, readers[target], normalize=not plain)
                if target == "zero-shot":
                    for form in FORMS:
                        yield f"{name} / {form}", self._averaged(features, labels, proxies[form])
                else:
                    yield f"{name} / {target}", reading(readers[target](features), labels, self.num_classes)

    def _attacked(
        self, items: Sequence, name: str, scores: Callable[[Tensor], Tensor], normalize: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Normalised content features of images attacked through `scores` of content features, and their labels.

        Args:
            items: List of Datum.
            name: The attack.
            scores: Content features `[B, E]` to scores `[B, C]`.
            normalize: Whether the attack gives `scores` normalised features.
        """
        backbone, node = self.backbone, self.node

        def embed(images: Tensor) -> Tensor:
            with self.precision.autocast():
                raw = backbone.embed_image(images, normalize=False)
            return self.content(raw)

        generator = torch.Generator().manual_seed(mix_seed(self.cfg.SEED, 1))
        read, features, labels = embed, [], []
        if node.ATTACK_SPACE == "pixels":
            read = attacks.pixel_space(embed, backbone.pixel_mean, backbone.pixel_std)
        for batch in progress_bar(self.features.loader(items), name):
            images, truth = self.parse_batch_test(batch)
            if node.ATTACK_SPACE == "pixels":
                images = attacks.to_pixels(images, backbone.pixel_mean, backbone.pixel_std)
            bad = attacks.attack(
                name,
                lambda x: scores(F.normalize(read(x), dim=-1) if normalize else read(x)),
                images,
                truth,
                node.ATTACK_EPSILON,
                generator=generator,
            )
            with torch.no_grad():
                features.append(F.normalize(read(bad), dim=-1))
            labels.append(truth)
        return torch.cat(features), torch.cat(labels)
