"""Imported once by the process from which local runs are forked: what every run would import and ask for again.

Nothing here starts threads or touches a GPU, so that the process stays fit to fork.
"""

from dassl_clip.engine.paths import leave_checkout

leave_checkout()  # this process was started in the working folder

import contextlib  # noqa: E402
import os  # noqa: E402

import open_clip  # noqa: E402, F401

with contextlib.suppress(ImportError):
    import torch.utils.tensorboard  # noqa: F401

from dassl_clip.engine import registry  # noqa: E402
from dassl_clip.results import environment  # noqa: E402

from . import run  # noqa: E402

registry.register()
environment.environment_facts()
drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, that of Windows' Linux, AMD's
if not any(map(os.path.exists, drivers)):  # the report asks the driver, which no process may do before it is forked
    run.environment_report()
