"""Figures as bytes: drawn without what belongs to who imports us."""

import subprocess
import sys

from conftest import ROOT


def test_drawing_leaves_pyplot_to_who_imports_us() -> None:
    # A notebook's figures were no longer shown once a figure of ours had been drawn.
    code = (
        "import matplotlib.pyplot as plt; plt.switch_backend('svg')\n"
        "from looped_jax.analysis import plots\n"
        "import looped_jax.inside.figures, looped_jax.theory.picture\n"
        "figure, _ = plots.subplots(1, 2, figsize=(2, 1))\n"
        "assert plots.png(figure)[1:4] == b'PNG'\n"
        "assert plt.get_backend().lower() == 'svg' and not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
