"""`dassl-clip backbones`: the architectures of open_clip, how their prompts are read, and by which tokenizer."""

from __future__ import annotations

import argparse

from tabulate import tabulate

from dassl_clip.cli.arguments import Parser, command
from dassl_clip.results.errors import UserError

FAST = "all savings"


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip backbones",
        description="Architectures of open_clip: how fast prompts are read, which tokenizer, which published weights.",
        epilog="example: dassl-clip backbones SigLIP",
    )
    parser.add_argument("part", nargs="?", default="", metavar="TEXT", help="only names that hold this (default: all)")
    parser.add_argument("--plain", action="store_true", help="only those whose text tower has not all the savings")
    return parser


def run(args: argparse.Namespace) -> int:
    import open_clip

    from dassl_clip.clip.text_blocks import plain_reason

    rows = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        reason = plain_reason(config)
        if args.part.lower() in name.lower() and (reason or not args.plain):
            tokenizer = config["text_cfg"].get("hf_tokenizer_name") or "CLIP's own"
            tags = len(open_clip.list_pretrained_tags_by_model(name))
            rows.append([name, reason or FAST, tokenizer, tags])
    if not rows:
        raise UserError(f"no architecture of open_clip has {args.part!r} in its name; `dassl-clip backbones` lists all")
    print(tabulate(rows, ["architecture", "text tower", "tokenizer", "tags"], disable_numparse=True))
    print("\nTokenizers other than CLIP's own need the extra hf (transformers), and their files in a cache or a folder "
          "(MODEL.BACKBONE.TOKENIZER).")  # fmt: skip
    return 0


main = command(build_parser, run)
