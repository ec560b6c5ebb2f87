"""Runs command lines of train.py one after the other, as one of torchrun's processes: `drive.py FILE`, a JSON list.

The main process prints `exit CODE` after each, when all processes have come to its end.
"""

import json
import sys
from pathlib import Path

from dassl_clip.cli import train
from dassl_clip.engine import distributed

for words in json.loads(Path(sys.argv[1]).read_text()):
    code = train.main(words)
    distributed.stop()  # after an error, which all processes have, the group is still there
    if distributed.is_main():
        print(f"exit {code}", file=sys.stderr, flush=True)
