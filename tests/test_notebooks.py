"""The notebooks run from top to bottom in a fresh kernel, with smaller numbers in their cell of parameters."""

import json
import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
QUICKSTART = """run_dir, steps, evaluations = "run", 2, 6
overrides = [
    "data.train_size=16", "data.validation_size=8", "data.test_size=8", "data.calibration_size=8", "data.batch_size=4",
]"""
SMALL = {
    "quickstart": QUICKSTART,
    "pareto_front": QUICKSTART,
    "search_space": 'model, draws, candidates = "microworld_llama", 60, 3',
    "unast_structures": """run_dir = "operators"
overrides = [
    "pool=deployable", "distill.steps=1", "distill.score_batches=1", "trainer.limit_val_batches=1",
    "budget.latency=null",
    "budget.params=[0.7]", "search.number=1", "select.steps=0", "latency.rounds=1", "latency.sequence_length=16",
    "data.train_size=64",
    "data.validation_size=8", "data.calibration_size=8", "data.batch_size=4",
]""",
}


def test_all_notebooks_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them run: the front that one reads is the other's."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, work: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
    assert {line.split(" ")[0] for line in parameters.source.splitlines()} <= set(SMALL[name].replace(",", " ").split())
    parameters.source = SMALL[name]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])}
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(work)}})
    client.execute(env=env)
    assert json.dumps(book).count('"image/png"') >= 1
