"""What libraries say on stderr that is not for the user of a command: left unsaid.

Progress, figures and the one line of an error are ours to print, and notices hide them. What is set
here is set for all commands (config/cli.py), and stays as it is where the user has set it.
"""

import logging
import os
import pathlib
import sys
import warnings

from absl import logging as absl_logging

# libtpu asks a TPU VM's metadata server what it is and, where there is none, says so in nine lines;
# this it would have heard there. Needed too by what compiles for TPUs that are not there.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}
_LOGGERS = ("jax", "orbax", "tensorflow", "transformers", "matplotlib", "grain")
# Orbax logs each failure that it also raises, and its threads complain when one of them has failed.
_OF_STORAGE = ("absl", "asyncio")


def has_tpu() -> bool:
    """Whether this machine has one, as far as its device files say."""
    devices = (*pathlib.Path("/dev").glob("accel*"), *pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return bool(devices)


def silence_libraries() -> None:
    """Before JAX starts its backend."""
    # XLA's own level is left alone: that another process of a run has died is said on it.
    for name, value in ({} if has_tpu() else NO_TPU).items():
        os.environ.setdefault(name, value)
    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in _OF_STORAGE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
