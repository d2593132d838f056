"""Imports between the package's rooms point one way, read from the source; `import nas_llm` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nas_llm

PACKAGE = Path(nas_llm.__file__).parent
VALUES = {"architecture", "search_space", "parameter_bins", "operator_network"}
FILES = {"atomic_files", "ranks", "run_directory", "metrics", "run_fingerprints", "provenance", "json_lines"}
MIDDLE = {
    "importance",
    "peft",
    "operators",
    "sparsity",
    "quantization",
    "baselines",
    "objectives",
    "evaluation",
    "benchmarks",
}
ALLOWED: dict[str, set[str]] = {
    "architecture": set(),
    "operator_network": {"architecture"},
    "axis_choices": {"architecture"},
    "encoding": {"architecture", "axis_choices"},
    "whole_layers": {"architecture", "axis_choices"},
    "search_space": {"architecture", "axis_choices", "encoding", "whole_layers"},
    "parameter_bins": {"architecture", "search_space"},
    "atomic_files": set(),
    "ranks": set(),
    "run_directory": {"atomic_files", "ranks"},
    "metrics": {"atomic_files", "run_directory"},
    "run_fingerprints": {"atomic_files", "ranks", "run_directory"},
    "provenance": {"atomic_files", "ranks"},
    "json_lines": {"atomic_files"},
    "schedules": set(),
    "config_types": set(),
    "config_errors": set(),
    "config": {"config_types", "config_errors"},
    "config_effects": {"config"},
    "overrides": set(),
    "stage_reads": {"config_errors", "overrides", "stages"},
    "distillation": set(),
    "data": FILES,
    "models": VALUES | FILES,
    "samplers": VALUES,
    "search": VALUES | FILES,
    "reporting": VALUES | FILES | {"search"},  # the readers of its files
    "lightning": VALUES
    | FILES
    | MIDDLE
    | {"models", "data", "distillation", "samplers", "search", "reporting", "config"},
    **{room: VALUES | FILES | {"models"} for room in MIDDLE},
}
ALLOWED["evaluation"] |= {"data"}  # questions from files, and the tokens that training gives a prompt
ALLOWED["operators"] |= {"sparsity", "quantization"}  # of single layers, as operators
ALLOWED["operators"] |= {"schedules", "importance"}  # what modules read on calibration data
ALLOWED["baselines"] |= {"sparsity", "quantization", "importance", "objectives", "operators"}  # methods to compare with
ALLOWED["objectives"] |= {"evaluation", "data", "peft", "sparsity"}  # measured with adapters merged; zeros
ALLOWED["importance"] |= {
    "objectives",
    "evaluation",
}  # the loss that it differentiates, and that a block's removal costs
ALLOWED["analysis"] = VALUES | FILES | {"models", "importance", "samplers", "objectives", "reporting", "lightning"}
ALLOWED["benchmarks"] |= {"lightning", "distillation", "samplers", "search", "objectives"}
ALLOWED["benchmarks"] |= {"sparsity", "quantization", "peft", "operators"}
ALLOWED["reproduction"] = FILES | {"reporting", "config_types", "config_errors"}
ALLOWED["stages"] = ALLOWED["lightning"] | {"lightning", "schedules", "analysis", "config_errors", "reproduction"}
ALLOWED["stage_kinds"] = set()
ALLOWED["composition"] = {
    "ranks",
    "run_directory",
    "stage_kinds",
    "stage_reads",
    "config",
    "config_effects",
    "config_errors",
}
ALLOWED["composition"] |= {"overrides", "reporting"}
ALLOWED["sweep_jobs"] = {"composition", "run_directory", "stage_kinds", "config", "config_errors", "overrides"}
ALLOWED["stage_run"] = FILES | {"composition", "stages", "stage_kinds", "stage_reads", "config_errors", "overrides"}
ALLOWED["launch"] = ALLOWED["sweep_jobs"] | ALLOWED["stage_run"] | {"sweep_jobs", "stage_run"}
ALLOWED["cli"] = ALLOWED["launch"] | {"launch"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["worker"] = ALLOWED["cli"] | {"cli"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(node: ast.AST) -> set[str]:
    """The rooms that `node` imports from, leaving out imports for type checkers alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return set().union(*(imported(child) for child in node.orelse))
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        whole = node.module == "nas_llm"
        names = [f"nas_llm.{alias.name}" for alias in node.names] if whole else [node.module or ""]
    else:
        return set().union(*(imported(child) for child in ast.iter_child_nodes(node)))
    return {name.split(".")[1] for name in names if name.startswith("nas_llm.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in ALLOWED, f"{room} is a new room: say in tests/test_imports.py what it may import"
    rooms = {name for name in imported(ast.parse(path.read_text())) if not name.startswith("__")}
    assert rooms <= ALLOWED[room] | {room}


def test_a_wrong_import_would_be_seen() -> None:
    source = (
        "def f():\n  from nas_llm.stages import train\n  from nas_llm import cli\n  import nas_llm.lightning.module\n"
    )
    assert imported(ast.parse(source)) == {"stages", "cli", "lightning"}
    assert imported(ast.parse("if TYPE_CHECKING:\n    from nas_llm.stages import train\n")) == set()


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, nas_llm, nas_llm.cli; nas_llm.cli.overview(); nas_llm.__version__; print(sorted(sys.modules))"
    loaded = run_python(code)
    for name in ("torch", "numpy", "transformers", "lightning", "hydra", "omegaconf", "wandb", "pymoo", "matplotlib"):
        assert f"'{name}'" not in loaded


def test_the_public_names_load_where_they_are_used() -> None:
    heavy = "('hydra', 'wandb', 'lm_eval', 'pymoo', 'matplotlib', 'lightning', 'datasets')"
    code = (
        "import sys, nas_llm\n"
        "from nas_llm import Architecture, LayerChoice, SearchSpace, Supernet, from_pretrained, save_pretrained\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_public_names_are_listed_and_others_refused() -> None:
    assert set(nas_llm.__all__) <= set(dir(nas_llm))
    with pytest.raises(AttributeError, match="Supernett"):
        _ = nas_llm.Supernett  # type: ignore[attr-defined]


def test_the_version_is_the_packages() -> None:
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f'version = "{nas_llm.__version__}"' in project
