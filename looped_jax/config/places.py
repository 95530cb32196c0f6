"""Where the project's own files are: in a checkout, or in an installed package."""

import os
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# What holds the package and `experiments`: a checkout, or site-packages.
PROJECT_ROOT = PACKAGE.parent
_INSTALLED = PACKAGE / "assets"
# What code reads and ships, no code: vocabularies, the paper's numbers, the report's page.
ASSETS = _INSTALLED if _INSTALLED.is_dir() else PROJECT_ROOT / "data"


def expanded(path: str) -> str:
    """A path as a user writes it: `~` is the home folder, also behind `own:` and the like."""
    of, colon, rest = path.partition(":")
    if colon and rest.startswith("~") and of.isalpha():
        return f"{of}:{os.path.expanduser(rest)}"
    return os.path.expanduser(path)
