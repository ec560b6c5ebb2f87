"""One run of one method on one data set: `python train.py --help`."""

import sys

from dassl_clip.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
