"""Environment switches of the embedded toolbox.

| variable | when set to 1 |
| --- | --- |
| `DASSL_DETERMINISTIC` | deterministic kernels, no cudnn benchmark |
| `DASSL_REFUSE_TEST_SELECTION` | best_val without validation data is an error instead of a warning |
| `DASSL_SKIP_FILE_CHECK` | `Datum` does not look whether its file exists |
| `DASSL_DOWNLOAD` | the toolbox's own data sets may download what is missing |
| `DASSL_DATA_PARALLEL` | `SimpleTrainer.build_model` wraps its model for several GPUs |
"""

from __future__ import annotations

import os

OFF = {"", "0", "false", "no", "off"}


def is_on(name: str) -> bool:
    """Whether the environment variable `name` holds anything but a word for off."""
    return os.environ.get(name, "").strip().lower() not in OFF
