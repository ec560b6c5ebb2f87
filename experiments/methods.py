"""Which methods are meant: by a word of the command line, by a data set, or as the reference of another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dassl_clip.clip.templates import resolve_templates
from dassl_clip.engine import catalogue, declared, registry
from dassl_clip.engine.config import is_a
from dassl_clip.engine.overrides import Overrides, Pairs, resolve_config
from dassl_clip.results.documents import read_yaml
from dassl_clip.results.protocols import flatten_config

from .tasks import TASKS, fits_tasks


@dataclass(frozen=True)
class Method:
    """A trainer in one configuration.

    Attributes:
        trainer: registry name.
        config: config name or file, "" for the default.
        pairs: KEY VALUE pairs.
        base: the method whose runs it refines, or None.
    """

    trainer: str
    config: str = ""
    pairs: Pairs = ()
    base: "Method | None" = None

    def overrides(self, dataset: str, data: str = "", imports: tuple[str, ...] = ()) -> Overrides:
        """What every run of the method on a data set asks for; see `plan.Request` for the arguments."""
        file = catalogue.dataset_file(dataset)
        flags = [("TRAINER.NAME", self.trainer), *([("DATASET.ROOT", data)] if data else [])]
        trainer_file = catalogue.trainer_file(self.trainer, self.config, file.stem)
        return Overrides(catalogue.shown(file), catalogue.shown(trainer_file), tuple(flags), self.pairs, imports)


def method_of(word: str, pairs: Pairs = (), config: str = "", imports: tuple[str, ...] = ()) -> Method:
    """A method by its name on the command line: `TRAINER`, `TRAINER:CONFIG`, or `TRAINER:CONFIG+REFINER`.

    Args:
        word: the name.
        pairs: KEY VALUE pairs.
        config: config of the method where the word names none.
        imports: modules or files with trainers of the user's own.

    Raises:
        UserError: no such trainer.
    """
    base, plus, last = word.rpartition("+")
    if plus and _refines(last.partition(":")[0], imports):
        return replace(method_of(last, pairs, config, imports), base=method_of(base, pairs, "", imports))
    trainer, _, named = word.partition(":")
    named = named or config
    return Method(known_trainer(trainer, named, imports), named, pairs)


def _refines(name: str, imports: tuple[str, ...]) -> bool:
    if not imports:  # read from the sources, since importing trainers imports torch
        return any(catalogue.same_name(name, known) and bool(declared.trainer_fact(known, "refines"))
                   for known in catalogue.trainer_names())  # fmt: skip
    return any(catalogue.same_name(name, known) and getattr(registry.trainer_class(known), "refines", False)
               for known in _registered(imports))  # fmt: skip


def _registered(imports: tuple[str, ...]) -> list[str]:
    registry.register()
    for module in imports:
        registry.import_user_code(module)
    return registry.trainer_names()


def known_trainer(name: str, config: str = "", imports: tuple[str, ...] = ()) -> str:
    """The registry name meant by a name in any case.

    A trainer without a config in `configs/` is accepted if the user brings a yaml file or a module for it.

    Raises:
        UserError: no such trainer.
    """
    names = catalogue.trainer_names()
    own_config = config.endswith((".yaml", ".yml"))
    if imports or (own_config and registry.is_filled()):
        names = [*names, *_registered(imports)]
    elif own_config:
        names = [*names, *declared.registered_names("TRAINER")]
    return catalogue.match_trainer(name, names)


def reference_name() -> str:
    """The trainer that others are compared with."""
    return next(name for name in catalogue.trainer_names() if declared.trainer_fact(name, "is_reference"))


def all_methods(dataset: str, tasks: Sequence[str], pairs: Pairs = ()) -> list[Method]:
    """Every trainer with a config for the data set, the reference first, with their variants on the same backbone.

    Where the reference has no config for the data set, every trainer counts. Where a refiner is among them with
    `listed_refining`, the default config of every method that it can refine is refined too. Methods that do not fit one
    of the tasks are left out, and, unless all tasks are free of labels or scenarios, those without `listed_usually`;
    those without `listed` always.
    """
    reference, stem = reference_name(), catalogue.dataset_file(dataset).stem
    kinds = {name: registry.trainer_class(name) for name in catalogue.trainer_names()}
    names = sorted(kinds, key=lambda name: (name != reference, getattr(kinds[name], "listed_last", False), name))
    names = [name for name in names if getattr(kinds[name], "listed", True)]
    own = [name for name in names if catalogue.trainer_file(name, "", stem).stem == stem]
    own = [name for name in (own if reference in own else names) if fits_tasks(name, tasks)]
    if not all(TASKS[name].label_free or TASKS[name].scenario for name in tasks):
        own = [name for name in own if getattr(kinds[name], "listed_usually", True)]
    refiners = [name for name in own if getattr(kinds[name], "listed_refining", False)]
    methods = []
    for trainer in own:
        default, *variants = catalogue.trainer_configs(trainer, stem)
        methods.append(Method(trainer, default, pairs))
        if trainer != reference and not kinds[trainer].refines:
            methods += [Method(name, catalogue.trainer_configs(name, stem)[0], pairs, methods[-1]) for name in refiners]
        files = (catalogue.trainer_file(trainer, name, "") for name in (default, *variants))
        own_backbone, *others = (read_yaml(file)["MODEL"]["BACKBONE"]["NAME"] for file in files)
        same = [variant for variant, backbone in zip(variants, others) if backbone == own_backbone]
        methods += [Method(trainer, variant, pairs) for variant in same]
    return methods


def reference_method(asked: Overrides, trainer: str, name: str = "") -> Method:
    """The method to compare with: the same images, model, precision and prompt words, as far as it has such keys.

    Args:
        asked: what the method that is to be compared asks for.
        trainer: registry name of the reference.
        name: its config; "": the default one.
    """
    cfg = resolve_config(asked)
    flat = {key: value for key, value in flatten_config(cfg).items() if is_a(key, "comparable")}
    node, other = f"TRAINER.{cfg.TRAINER.NAME.upper()}.", f"TRAINER.{trainer.upper()}."
    # Of the shared keys those that were given, and the backbone; of the method's own all that say something.
    given = [*(key for key, _ in asked.pairs), "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.WEIGHTS"]
    wanted = {key: flat[key] for key in given if key in flat and not key.startswith("TRAINER.")}
    wanted |= {key.replace(node, other, 1): value for key, value in flat.items()
               if key.startswith(node) and value not in ("", [])}  # fmt: skip
    templates, words = f"{other}TEMPLATES", f"{other}CTX_INIT"
    if words in wanted:
        wanted.setdefault(templates, "words")
    reference = Method(trainer, name)
    plain_overrides = replace(reference.overrides(asked.dataset_file, dict(asked.flags).get("DATASET.ROOT", "")),
                              imports=asked.imports)  # fmt: skip
    plain = flatten_config(resolve_config(plain_overrides))
    changed = {key: value for key, value in wanted.items() if key in plain and plain[key] != value}

    def sentences(keys: dict[str, Any]) -> list[str] | None:
        """What the prompts say, or None of a trainer that has no such keys."""
        known = templates in keys and words in keys
        return resolve_templates(keys[templates], cfg.DATASET.NAME, words=keys[words]) if known else None

    if sentences(plain) == sentences(plain | changed):
        changed = {key: value for key, value in changed.items() if key not in (templates, words)}
    pairs = tuple((key, value if isinstance(value, str) else repr(value)) for key, value in changed.items())
    return replace(reference, pairs=pairs)
