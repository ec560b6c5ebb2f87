"""One run of one method on one data set: `python train.py --help`."""

import sys

try:
    from dassl_clip.cli.train import main
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("dassl_clip"):
        raise
    print(
        "error: dassl-clip is not installed for this Python; in the checkout: pip install ./toolbox -e .",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
