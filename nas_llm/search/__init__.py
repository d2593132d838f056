"""Searching a space for its Pareto front: ask / tell searchers, the archive they resume from, and the front itself."""

from nas_llm.search.archive import REFERENCE, TRUNCATION, Archive, Evaluation, read_archive
from nas_llm.search.directory import SearchOutcome, first_layers, search_run_directory
from nas_llm.search.grid import GridSearch
from nas_llm.search.hill_climbing import HillClimbing
from nas_llm.search.hypervolume import Box, HypervolumeCurve
from nas_llm.search.initial import DepthOnly, ImportanceOrder, Initial
from nas_llm.search.local_search import LocalSearch
from nas_llm.search.nsga2 import NSGA2
from nas_llm.search.pareto import Front, hypervolume, pareto_front
from nas_llm.search.protocol import Direction, Search
from nas_llm.search.random import RandomSearch
from nas_llm.search.run import Ranks, SearchResult, measure_all, open_archive, run_search
from nas_llm.search.stratified import StratifiedSearch

__all__ = [
    "NSGA2",
    "REFERENCE",
    "TRUNCATION",
    "Archive",
    "Box",
    "DepthOnly",
    "Direction",
    "Evaluation",
    "Front",
    "GridSearch",
    "HillClimbing",
    "HypervolumeCurve",
    "ImportanceOrder",
    "Initial",
    "LocalSearch",
    "RandomSearch",
    "Ranks",
    "Search",
    "SearchOutcome",
    "SearchResult",
    "StratifiedSearch",
    "first_layers",
    "hypervolume",
    "measure_all",
    "open_archive",
    "pareto_front",
    "read_archive",
    "run_search",
    "search_run_directory",
]
