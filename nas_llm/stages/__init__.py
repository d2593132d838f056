"""One short `main(cfg)` per stage of the command line; the first line of a module is its line in `nas-llm --help`."""

import ast
from functools import cache
from pathlib import Path


def modules() -> dict[str, ast.Module]:
    """The modules of the stages, parsed and not imported."""
    found = {}
    for path in (path for folder in __path__ for path in Path(folder).glob("[!_]*.py")):
        module = _parsed(path, path.stat().st_mtime_ns)
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = module
    return dict(sorted(found.items()))


@cache
def _parsed(path: Path, changed: int) -> ast.Module:
    return ast.parse(path.read_text())
