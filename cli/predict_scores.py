"""Where the scores of `dassl-clip predict` come from: a finished run, class names alone, or a method on the images.

A run and plain names score batch by batch. A method is fitted on the images, and scores them all; so does a run of a
method that scores images together.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl_clip.clip.names import embedded_folder
from dassl_clip.engine.overrides import Pairs
from dassl_clip.results import image_rows
from dassl_clip.results.errors import UserError
from dassl_clip.results.own_images import given_names

DEFAULT_BACKBONE = "IconsCLIP"
BATCH_SIZE = 64
Bad = list[tuple[Path, str]]  # files that cannot be read, and why


@dataclass
class Scores:
    """The scores of images.

    Attributes:
        names: `C` class names.
        facts: What gives the scores: method, backbone, prompt, ...
        batches: Paths of readable images, their logits `[B, C]`, and what could not be read.
        fitted: The trainer of a method, and its record, once `batches` are through.
    """

    names: list[str]
    facts: dict[str, Any]
    batches: Iterator[tuple[list[Path], Any, Bad]]
    fitted: list[Any] = field(default_factory=list)


def of_run(args: argparse.Namespace, paths: Sequence[Path]) -> Scores:
    """Those of a finished run."""
    from dassl_clip.engine.open_run import open_run
    from dassl_clip.engine.trainer import CLIPTrainer

    trainer, record = open_run(args.run, [Path(image_rows.file_of(paths[0]))], imports=args.imports)
    facts = {"run": str(args.run)} | record_facts(record)
    if type(trainer).score_jointly is not CLIPTrainer.score_jointly:
        return Scores(trainer.classnames, facts, iter([scored_together(trainer, paths)]))
    preprocess = trainer.backbone.preprocess()

    def scores(images: Any) -> Any:
        return trainer.model_inference(images.to(trainer.device)).float()

    return Scores(trainer.classnames, facts, streamed(args, paths, preprocess, scores))


def of_names(args: argparse.Namespace, paths: Sequence[Path]) -> Scores:
    """Those of the zero-shot classifier of class names."""
    import torch

    from dassl_clip.clip.backbone import load_backbone
    from dassl_clip.clip.templates import resolve_templates
    from dassl_clip.clip.zeroshot import zeroshot_weights

    names, templates = given_names(args.names), resolve_templates(args.templates or "single")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(chosen_backbone(args, paths), args.weights or "", device=device)
    weights = zeroshot_weights(backbone.text, names, templates)
    facts = {"method": "zero-shot", "backbone": backbone.name, "weights_hash": backbone.weights_hash}
    facts["prompt"] = " | ".join(templates)

    def scores(images: Any) -> Any:
        return backbone.logit_scale * backbone.encode_image(images.to(device)).float() @ weights

    return Scores(names, facts, streamed(args, paths, backbone.preprocess(), scores))


def of_method(args: argparse.Namespace, pairs: Pairs, paths: Sequence[Path]) -> Scores:
    """Those of a method that needs no labels, fitted on the images themselves.

    Raises:
        UserError: The method trains on labels, or a setting does not exist.
    """
    from dassl_clip.engine.config import decode
    from dassl_clip.engine.given_images import GivenImages, Item, fit, resolve, trainer_class
    from dassl_clip.engine.open_run import quiet
    from dassl_clip.engine.registry import import_user_code
    from dassl_clip.engine.trainer import CLIPTrainer

    for module in args.imports:
        import_user_code(module)
    kind = trainer_class(args.method)
    if kind.trains_on_labels:
        raise trained_on_labels(kind.__name__)
    if args.export and kind.score_jointly is not CLIPTrainer.score_jointly:
        raise UserError(
            f"{kind.__name__} scores images together and keeps nothing that could score others, so leave --export out"
        )
    names = given_names(args.names)
    values = {"SEED": 1, "DATALOADER.ON_BAD_IMAGE": "skip", "DATALOADER.NUM_WORKERS": args.workers}
    values |= {"DATALOADER.TEST.BATCH_SIZE": args.batch_size} if args.batch_size else {}
    values |= {"MODEL.BACKBONE.WEIGHTS": args.weights} if args.weights else {}
    values |= {f"TRAINER.{kind.__name__.upper()}.TEMPLATES": args.templates} if args.templates else {}
    values |= {key: decode(text) for key, text in pairs}
    good, bad = readable(paths)
    with tempfile.TemporaryDirectory() as folder, quiet():
        own = {**values, "OUTPUT_DIR": folder}
        cfg = resolve(kind.__name__, chosen_backbone(args, paths), own, origin="the command line")
        trainer, record = fit(cfg, GivenImages(names, [Item(str(path)) for path in good]))
    made = Scores(names, record_facts(record), iter(()), [trainer, record])
    made.facts["seconds"] = record["seconds"]["train"]
    scored, logits, more = scored_together(trainer, good)
    made.batches = iter([(scored, logits, bad + more)])
    return made


def record_facts(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the method and its model."""
    keys = ("method", "config", "dataset", "task", "source_domains", "target_domains", "shots", "seed", "prompt")
    facts = {key: record[key] for key in keys} | {"backbone": record["backbone"]["name"]}
    return facts | {"weights_hash": record["backbone"]["weights_hash"]}


def trained_on_labels(method: str) -> UserError:
    """The refusal of a method that trains on labels."""
    return UserError(
        f"{method} trains on labels, and these images have none: train it with `dassl-clip task` on labelled images "
        "and give --run, or take a method that needs none"
    )


def chosen_backbone(args: argparse.Namespace, paths: Sequence[Path]) -> str:
    """The backbone that was asked for; without one the embedded model, for the embedded icons alone.

    Raises:
        UserError: None was asked for, and there are other images.
    """
    icons = embedded_folder().parent / "icons"
    other = next((path for path in paths if not path.resolve().is_relative_to(icons.resolve())), None)
    if args.backbone is None and other is not None:
        raise UserError(
            f"{other} is none of the embedded icons, so the model has to be named: --backbone ViT-B/16 (or another "
            f"that `dassl-clip backbones` lists); --backbone {DEFAULT_BACKBONE} is the small one, which knows icons"
        )
    return args.backbone or DEFAULT_BACKBONE


def scored_together(trainer: Any, paths: Sequence[Path]) -> tuple[list[Path], Any, Bad]:
    """All images as one batch of `Scores`."""
    from dassl_clip.engine.given_images import GivenImages, Item, score
    from dassl_clip.engine.open_run import quiet

    good, bad = readable(paths)
    items = [Item(str(path)) for path in good]
    with quiet():
        logits, scored = score(trainer, GivenImages(trainer.classnames, items), items)
    left = {str(path) for path in good} - set(scored)
    return list(map(Path, scored)), logits, bad + [(Path(path), fault(Path(path))) for path in sorted(left)]


def readable(paths: Sequence[Path]) -> tuple[list[Path], Bad]:
    """The paths that lead to files, and the others.

    Raises:
        UserError: There is none.
    """
    good = [path for path in paths if os.path.isfile(image_rows.file_of(path))]
    there = set(good)
    bad = [(path, fault(path)) for path in paths if path not in there]
    if not good:
        raise UserError(f"none of the {len(paths)} files can be read as an image; the first: {bad[0][0]}: {bad[0][1]}")
    return good, bad


def streamed(
    args: argparse.Namespace, paths: Sequence[Path], preprocess: Callable[..., Any], scores: Callable[[Any], Any]
) -> Iterator[tuple[list[Path], Any, Bad]]:
    """Batch by batch; a bar on stderr shows the progress where that is a terminal."""
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    load, size = functools.partial(load_batch, preprocess), args.batch_size or BATCH_SIZE
    loader = DataLoader(paths, batch_size=size, num_workers=args.workers, collate_fn=load)  # type: ignore[arg-type]
    with tqdm(total=len(paths), desc="images", unit="", leave=False, disable=not sys.stderr.isatty()) as bar:
        for good, images, bad in loader:
            with torch.no_grad():
                logits = scores(images) if good else None
            yield good, logits, bad
            bar.update(len(good) + len(bad))


def load_batch(preprocess: Callable[..., Any], paths: list[Path]) -> tuple[list[Path], Any, Bad]:
    """One batch: paths and images `[B, 3, H, W]` of what could be read, and the rest."""
    from torch import stack

    from dassl_clip.engine.images import read_image

    good, bad = {}, []
    for path in paths:
        try:
            good[path] = preprocess(read_image(path))
        except OSError:
            bad.append((path, fault(path)))
    return list(good), stack(list(good.values())) if good else None, bad


def fault(path: Path) -> str:
    """Why a file cannot be read as an image."""
    from PIL import UnidentifiedImageError

    from dassl_clip.engine.images import read_image

    try:
        read_image(path)
    except UnidentifiedImageError:
        return "is no image that can be decoded" if image_rows.size_of(path) else "is empty"
    except OSError as error:
        return " ".join(str(error).split()) or type(error).__name__
    return "cannot be decoded"
