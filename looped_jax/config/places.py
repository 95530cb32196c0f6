"""Where the project's own files are: in a checkout, or in an installed package."""

import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# What holds the package and `experiments`: a checkout, or site-packages.
PROJECT_ROOT = PACKAGE.parent
_INSTALLED = PACKAGE / "assets"
# What code reads and ships, no code: vocabularies, the paper's numbers, the report's page.
ASSETS = _INSTALLED if _INSTALLED.is_dir() else PROJECT_ROOT / "data"
