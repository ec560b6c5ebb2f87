"""A run of a check in several processes: `torchrun -m dassl_clip.checks.process FILE`."""

import json
import sys
from pathlib import Path

from yacs.config import CfgNode

from dassl_clip.engine import registry
from dassl_clip.experiments.run import Job, start, supervised

from . import world  # noqa: F401 - registers the data set


def main(file: str) -> int:
    """Train and test by the configuration in a file."""
    facts = json.loads(Path(file).read_text(encoding="utf-8"))
    registry.register()
    for name in facts["imports"]:
        registry.import_user_code(name)
    config = CfgNode.load_cfg(facts["config"])
    config.freeze()
    return supervised(lambda: start(config, Job()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
