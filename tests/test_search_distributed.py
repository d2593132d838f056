"""The search divided over two processes (gloo): each architecture is measured once, by one of them."""

import json
import subprocess
import sys
from pathlib import Path

from search_fixtures import DIRECTIONS, joint_space, measure, other_searches

from nas_llm.search import NSGA2, Archive, run_search

WORKER = """
import json, sys
sys.path[:0] = [{tests!r}, {root!r}]
rank = int(sys.argv[1])
from torch import distributed
distributed.init_process_group("gloo", init_method="file://{path}/store", rank=rank, world_size=2)
from search_fixtures import DIRECTIONS, joint_space, measure, other_searches
from nas_llm.search import NSGA2, open_archive, run_search
mine = []
def evaluate(architecture, known):
    mine.append(architecture.id)
    return measure(architecture)
archive = open_archive("{path}/archive.jsonl")
result = run_search(NSGA2(joint_space(), DIRECTIONS, evaluations=30, population=8), evaluate, archive)
report = {{"mine": mine, "all": [e.id for e in archive.evaluations], "from_archive": result.from_archive}}
open("{path}/" + sys.argv[1], "w").write(json.dumps(report))
for search in other_searches(20):
    archive = open_archive("{path}/" + search.name + ".jsonl")
    run_search(search, measure, archive, progress=False)
distributed.destroy_process_group()
"""


def run_two(path):
    tests = Path(__file__).parent
    (path / "store").unlink(missing_ok=True)
    code = WORKER.format(tests=str(tests), root=str(tests.parent), path=path)
    workers = [subprocess.Popen([sys.executable, "-c", code, str(rank)]) for rank in range(2)]
    assert [worker.wait(timeout=400) for worker in workers] == [0, 0]
    return [json.loads((path / str(rank)).read_text()) for rank in range(2)]


def test_two_ranks_divide_the_work_and_find_what_one_finds(tmp_path):
    alone = Archive()
    run_search(NSGA2(joint_space(), DIRECTIONS, evaluations=30, population=8), measure, alone, progress=False)
    path = tmp_path / "archive.jsonl"
    whole = Archive(path)
    for evaluation in alone.evaluations[:11]:  # what a killed search has left
        whole.append(evaluation)
    first, second = run_two(tmp_path)
    assert Archive(path).evaluations == alone.evaluations
    assert first["all"] == second["all"] == [e.id for e in alone.evaluations]
    assert first["from_archive"] == second["from_archive"] == 11
    assert not set(first["mine"]) & set(second["mine"])
    assert len(first["mine"]) + len(second["mine"]) == 19
    assert min(len(first["mine"]), len(second["mine"])) >= 8
    for search in other_searches(20):
        alone = Archive()
        run_search(search, measure, alone, progress=False)
        assert Archive(tmp_path / f"{search.name}.jsonl").evaluations == alone.evaluations
