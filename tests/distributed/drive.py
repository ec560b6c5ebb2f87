"""Runs command lines of train.py one after the other: alone, or as one of torchrun's processes.

`python drive.py FILE` with a JSON list of argument lists; prints `exit CODE` for each in the main process.
"""

import json
import sys
from pathlib import Path

from dassl_clip.cli import train
from dassl_clip.engine import distributed

for words in json.loads(Path(sys.argv[1]).read_text()):
    code = train.main(words)
    if distributed.is_main():
        print(f"exit {code}", file=sys.stderr, flush=True)
    if code:
        sys.exit(code)
