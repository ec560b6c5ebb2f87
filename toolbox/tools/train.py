"""Trains or tests a registered trainer on a registered data set.

    python train.py --trainer Vanilla --root DATA --source-domains mnist svhn --target-domains syn \
        --dataset-config-file digits_dg.yaml --output-dir output -- OPTIM.MAX_EPOCH 5

Precedence, low to high: defaults, --dataset-config-file, --config-file, flags, trailing KEY VALUE pairs. A flag that
takes several values ends at the next flag or at `--`.
"""

from __future__ import annotations

import argparse

import torch
from yacs.config import CfgNode

from dassl.config import clean_cfg, get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger

FLAGS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="parent folder of all data sets")
    parser.add_argument("--output-dir", help="folder for logs and weights")
    parser.add_argument("--resume", help="folder of an earlier run to resume from")
    parser.add_argument("--seed", type=int, help="negative: unseeded")
    parser.add_argument("--source-domains", nargs="+")
    parser.add_argument("--target-domains", nargs="+")
    parser.add_argument("--transforms", nargs="+")
    parser.add_argument("--config-file", help="settings of the method")
    parser.add_argument("--dataset-config-file", help="settings of the data set")
    parser.add_argument("--trainer", help="registry name")
    parser.add_argument("--backbone", help="registry name")
    parser.add_argument("--head", help="registry name")
    parser.add_argument("--eval-only", action="store_true", help="test the model of --model-dir")
    parser.add_argument("--model-dir", default="", help="folder of a run, with --eval-only")
    parser.add_argument("--load-epoch", type=int, help="epoch of the model to load; the best one if left out")
    parser.add_argument("--no-train", action="store_true", help="build everything, train nothing")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    return parser


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The configuration that the files, the flags and the trailing pairs give, frozen."""
    cfg = get_cfg_default()
    for fpath in (args.dataset_config_file, args.config_file):
        if fpath:
            cfg.merge_from_file(fpath)
    for flag, key in FLAGS.items():
        value = getattr(args, flag)
        if value is not None:
            _set(cfg, key, tuple(value) if isinstance(value, list) else value)
    cfg.merge_from_list([part for part in args.opts if part != "--"])
    clean_cfg(cfg, cfg.TRAINER.NAME)
    cfg.freeze()
    return cfg


def _set(cfg: CfgNode, key: str, value: object) -> None:
    *nodes, leaf = key.split(".")
    for node in nodes:
        cfg = cfg[node]
    cfg[leaf] = value


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    args = build_parser().parse_args(argv)
    cfg = setup_cfg(args)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print("** Arguments **")
    for name, value in sorted(vars(args).items()):
        print(f"{name}: {value}")
    print(f"** Config **\n{cfg}")
    print("Collecting env info ...")
    print(f"** System info **\n{collect_env_info()}\n")

    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()


if __name__ == "__main__":
    main()
