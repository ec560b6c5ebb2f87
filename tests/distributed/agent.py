"""What torchrun does with two processes, which are forked here: `agent.py ARGUMENTS-OF-TRAIN`."""

import sys

from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch

from dassl_clip.cli import train

flags = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nproc-per-node", "2"]
config, _, _ = run.config_from_args(run.parse_args([*flags, "--start-method", "fork", "train.py"]))
elastic_launch(config, lambda *words: sys.exit(train.main(words)))(*sys.argv[1:])
