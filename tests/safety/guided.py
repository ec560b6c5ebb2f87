"""Coverage-guided fuzzing of the readers of text and of pickles: `python tests/safety/guided.py RUNS [SEEDS_FOLDER]`.

`test_guided.py` runs it where atheris is installed. It ends with libFuzzer's report; an error that is none of the
documented ones is printed with its traceback and gives another exit code.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

import atheris

ROOMS = [
    "dassl_clip.datasets",
    "dassl_clip.results.documents",
    "dassl_clip.results.records",
    "dassl_clip.clip.weights",
]

with atheris.instrument_imports(include=ROOMS):
    from dassl_clip.clip import weights
    from dassl_clip.datasets import manifest, selections, split_file
    from dassl_clip.datasets.spec import load_spec
    from dassl_clip.results import documents, records

from dassl_clip.engine.errors import is_user_error  # noqa: E402

logging.disable(logging.CRITICAL)
SPEC = load_spec("dtd")
FOLDER = Path(tempfile.mkdtemp())
READERS = (
    lambda path: manifest.read_rows(path),
    lambda path: split_file.read_split_file(path, SPEC),
    lambda path: selections.read_selection(str(path), "Icons", 1, [], []),
    lambda path: documents.read_run_config(path),
    lambda path: weights.read_archive(path),
    lambda path: records.inspect_record(path.parent),
)


def read(content: bytes) -> None:
    """Give the content to the reader that its first byte chooses."""
    if not content:
        return
    path = FOLDER / records.RECORD_NAME
    path.write_bytes(content[1:])
    try:
        READERS[content[0] % len(READERS)](path)
    except Exception as error:
        if not is_user_error(error):
            raise


if __name__ == "__main__":
    runs, *seeds = sys.argv[1:]
    os.chdir(FOLDER)  # libFuzzer writes what fails into the working directory
    atheris.Setup([sys.argv[0], f"-runs={runs}", "-seed=1", "-max_len=400", "-rss_limit_mb=0", *seeds], read)
    atheris.Fuzz()
