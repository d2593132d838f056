"""Before training: score the units of the network on calibration data and sort it, make it sparse, quantise it; or as
the run had it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nas_llm.importance.naming import in_words
from nas_llm.importance.scores import read_scores_of, refuse_not_finite, write_scores
from nas_llm.models.supernet import Supernet
from nas_llm.quantization import Quantization
from nas_llm.quantization.recorded import read_quantized_layers, write_quantized_layers
from nas_llm.quantization.recorded import summary as quantization_summary
from nas_llm.ranks import is_main_process
from nas_llm.run_directory import IMPORTANCE_FILE, QUANTIZED_WEIGHTS_FILE, SPARSE_WEIGHTS_FILE
from nas_llm.run_fingerprints import recorded_fingerprints
from nas_llm.sparsity import Sparsity
from nas_llm.sparsity.recorded import read_sparse_weights, summary, write_sparse_weights

Batches = Iterable[Mapping[str, Tensor]]
Importance = Callable[[Supernet, Batches], dict[str, Tensor]]


def sort_by_importance(
    supernet: Supernet,
    importance: Importance | None,
    batches: Callable[[], Batches],
    run_dir: Path,
    *,
    resumes: bool,
) -> None:
    """Sort ``supernet``; None leaves it as it is. Of a network of operators, whose units stay where they are, the
    layers alone are ordered; a network without an elastic axis is neither scored nor sorted.

    A resumed run, and the ranks that the first one starts, take the scores that lie in ``run_dir``: the order of the
    units is then the same to the last tie. Otherwise the scores are computed, and the first rank writes them;
    ``batches`` is called only where the method looks at data.

    Raises:
        ValueError: the scores in ``run_dir`` are of another network; and what ``importance`` raises.
    """
    if importance is None or not supernet.elastic_axes:  # nothing to sort
        return
    recorded = (resumes or not is_main_process()) and (run_dir / IMPORTANCE_FILE).is_file()
    scores: Mapping[str, Tensor]
    if recorded:
        scores = read_scores_of(supernet, run_dir / IMPORTANCE_FILE, setting=f"run_dir={run_dir}")
    else:
        scores = scores_to_sort_by(supernet, importance, batches)
    if not scores:
        return
    refuse_not_finite(scores, supernet)
    if not recorded and is_main_process():
        write_scores(scores, run_dir, method=in_words(importance), supernet=supernet)
    supernet.sort(scores)


def scores_to_sort_by(
    supernet: Supernet, importance: Importance, batches: Callable[[], Batches]
) -> Mapping[str, Tensor]:
    """The scores that ``supernet`` can be sorted by: of a network of operators, those of its layers alone."""
    scores = importance(supernet, WhenAsked(batches))
    return scores if supernet.operators is None else {key: score for key, score in scores.items() if key == "layers"}


def sparsify(
    supernet: Supernet, sparsity: Sparsity | None, batches: Callable[[], Batches], run_dir: Path, *, resumes: bool
) -> None:
    """Make ``supernet`` sparse; None leaves it as it is.

    Patterns lie along neighbouring weights, so that the network is sorted before. A resumed run, and the ranks that the
    first one starts, take the weights that lie in ``run_dir``; otherwise they are computed, and the first rank writes
    and prints what came of it.

    Raises:
        ValueError: the weights in ``run_dir`` are of another network; and what ``sparsity`` raises.
    """
    if sparsity is None:
        return
    if (resumes or not is_main_process()) and (run_dir / SPARSE_WEIGHTS_FILE).is_file():
        read_sparse_weights(supernet, run_dir)
        return
    counts = sparsity(supernet, WhenAsked(batches))
    supernet.made_sparse = frozenset(name for name, zeros in counts.by_name.items() if zeros.zeros)
    if is_main_process():
        write_sparse_weights(supernet, counts, run_dir, method=repr(sparsity))
        print(summary(supernet, counts))


def quantize(
    supernet: Supernet,
    quantization: Quantization | None,
    batches: Callable[[], Batches],
    run_dir: Path,
    *,
    resumes: bool,
) -> None:
    """Quantise ``supernet``, once it is sorted and sparse; None leaves it as it is.

    A resumed run, and the ranks that the first one starts, take the layers that lie in ``run_dir``; otherwise they are
    computed, and the first rank writes and prints what came of it.

    Raises:
        ValueError: the layers in ``run_dir`` are of another network; and what ``quantization`` raises.
    """
    if quantization is None:
        return
    if (resumes or not is_main_process()) and (run_dir / QUANTIZED_WEIGHTS_FILE).is_file():
        read_quantized_layers(supernet, run_dir)
        return
    report = quantization(supernet, WhenAsked(batches))
    if is_main_process():
        write_quantized_layers(supernet, report, run_dir, method=repr(quantization))
        print(quantization_summary(report))


def prepared_again(supernet: Supernet, run_dir: Path) -> None:
    """Makes the run's network sparse and quantised once more, from what lies in ``run_dir``, in the order that it had
    before it was sorted. A quantised one stays sorted: no sub-network cuts the weights whose order that is.

    Raises:
        ValueError: a file in ``run_dir`` is damaged, or of another network.
    """
    recorded = recorded_fingerprints(run_dir)
    sparse, quantised = bool(recorded.get("sparsity")), bool(recorded.get("quantization"))
    if not (sparse or quantised):
        return
    if recorded.get("importance"):
        supernet.sort(read_scores_of(supernet, run_dir / IMPORTANCE_FILE, setting=f"run_dir={run_dir}"))
    if sparse:
        read_sparse_weights(supernet, run_dir)
    if quantised:
        read_quantized_layers(supernet, run_dir)
    else:
        supernet.unsort()


@dataclass(frozen=True)
class WhenAsked:
    """Batches that are made when someone goes through them: a method that needs no data asks for none."""

    make: Callable[[], Batches]

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        return iter(self.make())
