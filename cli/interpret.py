"""The words nearest to a learned context: `dassl-clip interpret RUN`.

Source: the question and the reading are those of interpret_prompt.py (Zhou et al., IJCV 2022, section 4.3): each
learned vector beside the token embeddings of the frozen text tower. It is weak evidence, and the output says why.

Shapes: `C` classes, `M` context tokens, `D` text width, `W` words of the vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_clip.cli.arguments import Parser, add_import, check_format, command
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.escaping import csv_text
from dassl_clip.results.files import write_text_atomically
from dassl_clip.results.labels import display_name

METRICS = ("euclidean", "cosine")
COLUMNS = ("class", "position", "rank", "word", "token", "distance", "whole_word")
CLASSES_SHOWN = 3
CONTEXT = "ctx"  # the parameter's name in checkpoints
SAMPLE = 512  # words whose nearest neighbour is looked up, for the scale
CAVEAT = (
    "weak evidence: a learned vector is free to lie where no word does, the tokens are parts of words, words that "
    "pre-training hardly saw lie anywhere, and the nearest word need not mean what the vector does in a prompt"
)


Row = tuple[str, int, int, str, int, float, bool]  # of `COLUMNS`; the class is empty for a context of all classes


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip interpret",
        description="The vocabulary's words that are nearest to the prompt tokens that a run learned (before "
        "an image shifts it, where one does). Weak evidence: the output says why.",
        epilog="example: dassl-clip interpret output/fewshot/icons/METHOD/icons/shots16/line/seed1 --metric cosine",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, or an exported file")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="words a context vector (default: 10)")
    parser.add_argument("--metric", choices=METRICS, default=METRICS[0], help="default: euclidean, as in the source")
    parser.add_argument("--classes", nargs="+", default=(), metavar="NAME",
                        help=f"of contexts per class (default: {CLASSES_SHOWN} in a table, all in a file)")  # fmt: skip
    parser.add_argument("--out", default="", metavar="FILE", help="write words.csv or words.json (default: a table)")
    add_import(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if args.out:
        check_format(args.out)
    if args.top < 1:
        raise UserError(f"--top {args.top}: at least 1 is needed")
    found, facts = interpret(args)
    if args.out:
        path = Path(args.out).expanduser()
        write_text_atomically(path, render(found, facts, path.suffix.lower()))
        print(f"{len(found)} words: {path}\n{CAVEAT}")
    else:
        print(table(found, facts))
    return 0


def interpret(args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The words that the arguments ask for, and the facts around them."""
    from dassl_clip.engine.open_run import open_run

    place = Path(args.run).expanduser()
    trainer, record = open_run(place, imports=args.imports)
    context, shifted = learned_context(trainer)
    if context.dim() == 2 and args.classes:
        raise UserError("--classes: the run has one context for all classes, so there is nothing to choose")
    chosen = {"": context} if context.dim() == 2 else choose_classes(args, trainer.classnames, context)
    tokenizer = trainer.backbone.text.tokens.tokenizer
    words = trainer.backbone.text.token_embedding.weight.detach().float().cpu()
    found, read = [], {}
    for name, vectors in chosen.items():
        distances, tokens = nearest(vectors, words, args.top, args.metric)
        read[name] = _own_decoder(tokenizer)(tokens[:, 0].tolist()).strip()
        for position, (values, ids) in enumerate(zip(distances.tolist(), tokens.tolist()), start=1):
            for rank, (value, token) in enumerate(zip(values, ids), start=1):
                word, whole = decode(tokenizer, token)
                found.append((name, position, rank, word, token, value, whole))
    facts = {key: record[key] for key in ("method", "config", "dataset", "target_domains", "seed", "prompt")}
    facts |= {"run": str(place), "metric": args.metric, "vocabulary": len(words)}
    facts["between_words"] = between_words(words, args.metric)
    facts |= {"nearest_as_text": read, "shifted_by_images": shifted}
    facts["classes"] = len(trainer.classnames) if context.dim() == 3 else 0
    return found, facts


def learned_context(trainer: Any) -> tuple[Any, bool]:
    """The context `[M, D]`, or `[C, M, D]` for one per class, among the learned parts; and whether images shift it.

    Raises:
        UserError: it has none.
    """
    for name in trainer.get_model_names():
        for key, value in trainer._models[name].state_dict().items():
            if key.rpartition(".")[2] == CONTEXT and value.dim() in (2, 3):
                return value.detach().float().cpu(), not trainer.reads_features
    method = type(trainer).__name__
    raise UserError(f"{method} learns no context of prompt tokens, so there are no words to look up")


def choose_classes(args: argparse.Namespace, names: Sequence[str], context: Any) -> dict[str, Any]:
    """Class names and their contexts: those that were asked for, else a few for a table and all for a file."""
    plain = {display_name(name).lower(): index for index, name in enumerate(names)}
    asked = {name: plain.get(display_name(name).lower()) for name in args.classes}
    for name, index in asked.items():
        if index is None:
            raise UserError(f"--classes: the run has no class '{name}'.{did_you_mean(name, names)}")
    places = asked.values() or range(len(names) if args.out else min(CLASSES_SHOWN, len(names)))
    return {names[index]: context[index] for index in places}


def nearest(vectors: Any, words: Any, top: int, metric: str) -> tuple[Any, Any]:
    """Distances and numbers of the nearest of the words `[W, D]` to vectors `[M, D]`, `[M, top]` each, nearest first.

    The metric is "euclidean", or "cosine" for 1 - cosine.
    """
    import torch
    import torch.nn.functional as F

    if metric == "cosine":
        distances = 1 - F.normalize(vectors, dim=-1) @ F.normalize(words, dim=-1).T
    else:
        distances = torch.cdist(vectors, words, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(min(top, len(words)), dim=1, largest=False)


def between_words(words: Any, metric: str) -> float:
    """Median distance of a word of the vocabulary to the nearest other one, over an even sample."""
    import torch

    sample = torch.linspace(0, len(words) - 1, min(SAMPLE, len(words))).long()
    distances, _ = nearest(words[sample], words, 2, metric)
    return distances[:, -1].median().item()


def decode(tokenizer: Any, token: int) -> tuple[str, bool]:
    """A token as its tokenizer writes it, and whether a word ends there (as far as the tokenizer tells)."""
    if hasattr(tokenizer, "decoder"):
        text = tokenizer.decode([token])
        return text.strip() or repr(text), tokenizer.decoder[token].endswith(("</w>", ">"))
    return _own_decoder(tokenizer)([token]).strip(), True


def _own_decoder(tokenizer: Any) -> Any:
    """The function by which a tokenizer turns a list of tokens into a text.

    Raises:
        UserError: it has none.
    """
    for owner in (tokenizer, getattr(tokenizer, "tokenizer", None)):
        if hasattr(owner, "decode"):
            return owner.decode
    raise UserError(f"{type(tokenizer).__name__} cannot turn tokens into words")


def render(found: Sequence[Row], facts: dict[str, Any], suffix: str) -> str:
    """The words as the text of a CSV or JSON file."""
    rows = [(*row[:5], round(row[5], 6), row[6]) for row in found]
    if suffix == ".json":
        content = {**facts, "caveat": CAVEAT, "words": [dict(zip(COLUMNS, row)) for row in rows]}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return csv_text([COLUMNS, *rows])


def table(found: Sequence[Row], facts: dict[str, Any]) -> str:
    """A line for each context vector, nearest word first."""
    lines: dict[tuple[str, int], list[str]] = {}
    for name, position, _, word, _, distance, whole in found:
        lines.setdefault((name, position), []).append(f"{word}{'' if whole else '-'} {distance:.3f}")
    text, width = [], max(len(str(position)) for _, position in lines)
    shown = list(dict.fromkeys(name for name, _ in lines))
    for name in shown:
        text.append(f"{name + ': ' if name else ''}the nearest ones in a row read '{facts['nearest_as_text'][name]}'")
        text += [f"{position:>{width}}  {', '.join(words)}" for (own, position), words in lines.items() if own == name]
    more = f"; {len(shown)} of {facts['classes']} classes" if len(shown) < facts["classes"] else ""
    return "\n".join(
        [
            f"{facts['method']} ({facts['config']}), {facts['dataset']}, seed {facts['seed']}; {facts['prompt']}",
            f"nearest of {facts['vocabulary']:,} words, {facts['metric']} distance; `-`: the word continues{more}",
            f"for scale: a word's own nearest other word is {facts['between_words']:.3f} away (median)",
            *text,
            *(["this is the context before each image adds its own shift"] if facts["shifted_by_images"] else []),
            CAVEAT,
        ]
    )


main = command(build_parser, run)
