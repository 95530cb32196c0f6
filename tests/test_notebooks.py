"""The notebooks run from top to bottom, at a small size."""

import pathlib

import nbclient
import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"STEPS": "2", "EXAMPLES": "64"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    sizes = next(cell for cell in notebook.cells if cell.cell_type == "code")
    lines = []
    for line in sizes.source.splitlines():  # The first cell has nothing but sizes and places.
        name, _, value = line.partition(" = ")
        lines.append(f"{name} = {SMALL.get(name, value)}")
    assert lines and set(SMALL) & {line.split(" = ")[0] for line in lines}
    sizes.source = "\n".join(lines)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    printed = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any(o.output_type == "stream" for o in printed)
    assert any("image/png" in o.get("data", {}) for o in printed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_of_a_whole_run_in_order(path: pathlib.Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [o for cell in cells for o in cell.outputs]
    assert not [o for o in shown if o.output_type == "error"]
    assert len(path.read_text()) < 300_000
