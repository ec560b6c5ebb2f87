"""Prompt templates by name.

The sets are those of CLIP (data/prompts.md and the ImageNet notebook), CoOp (its zero-shot program), InMaP and CLAP;
their texts stand in `templates.json`, with a version that changes when any of them does.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from dassl_clip.results.errors import UserError, did_you_mean

DEFAULT = "single"
OWN = "{own}"  # in a template: the own style of the class
WORDS = "words"


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files(__package__).joinpath("templates.json").read_text(encoding="utf-8"))
    return data


def template_names() -> list[str]:
    """The names that `resolve_templates` knows."""
    return [*_data()["sets"], *_data()["by_dataset"], WORDS]


def resolve_templates(templates: str | Sequence[str], dataset: str = "", words: str = "a photo of a") -> list[str]:
    """The templates that a name or a list stands for.

    Args:
        templates: A name; one template with `{}`; or a list of templates. Names: `single` ("a photo of a {}."),
            `inmap7` and `imagenet_select` (seven for ImageNet, in InMaP's and in CoOp's order), `imagenet80` (CLIP's
            eighty), `coop` (CoOp's for the data set; `single` for others), `clip` (CLIP's for the data set;
            `imagenet80` for ImageNet and its variants), `clap_c`, `clap_cp`, `clap_pc` (CLAP's forms), `words`
            (`words`, the name, a full stop: the sentence that CoOp and GOPro start from). `coop:NAME` and `clip:NAME`
            take another data set's.
        dataset: Registry name of the data set, for `coop` and `clip`.
        words: The words of `words`; underscores count as blanks.

    Returns:
        Templates with exactly one `{}` each, in their order; each may also hold one `{own}`, for `fill_template`.

    Raises:
        UserError: An unknown name, a data set without templates of that kind, or a template without one `{}`.
    """
    if not isinstance(templates, str):
        return _checked(templates)
    if "{" in templates:
        return _checked([templates])
    name, _, other = templates.partition(":")
    dataset = other or dataset
    sets, by_dataset = _data()["sets"], _data()["by_dataset"]
    if name == WORDS:
        return _checked([f"{words.replace('_', ' ').strip()} {{}}.".strip()])
    if name in sets and not other:
        return list(sets[name])
    if name in by_dataset:
        table = by_dataset[name]
        if dataset in table:
            return list(table[dataset])
        if name == "clip" and dataset.startswith("ImageNet"):
            return list(sets["imagenet80"])
        if name == "coop" and not other:
            return list(sets[DEFAULT])
        raise UserError(
            f"there are no {name!r} templates for the data set {dataset!r}."
            + did_you_mean(dataset, table, most=2)
            + f" There are for {', '.join(table)}; for others take single or imagenet80"
        )
    raise UserError(
        f"unknown templates {templates!r}."
        + did_you_mean(templates, template_names(), cutoff=0.5, most=2)
        + f" Known names: {', '.join(template_names())}; or give templates with {{}} for the class name"
    )


def fill_template(template: str, name: str, own: str = "") -> str:
    """The text of a class: a template with one `{}`, and perhaps `{own}`, filled with its name and own style.

    Raises:
        UserError: the template asks for own styles, and there are none.
    """
    if OWN in template and not own:
        raise UserError(
            f"the template {template!r} has {OWN}, the own style of each class, but no own styles are known here; name "
            "their file by DATASET.OWN_STYLES"
        )
    return template.replace(OWN, own).replace("{}", name)


def _checked(templates: Sequence[str]) -> list[str]:
    """The templates as a list, once each has one place for the class name."""
    wrong = [
        template
        for template in templates
        if not isinstance(template, str) or re.findall(r"\{.*?\}|[{}]", template.replace(OWN, "", 1)) != ["{}"]
    ]
    if wrong or not templates:
        raise UserError(
            f"each template needs exactly one {{}} for the class name, as in 'a photo of a {{}}.'; got {wrong[0]!r}"
            if wrong
            else "the list of templates is empty"
        )
    return list(templates)
