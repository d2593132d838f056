"""A super-network with its adapters as a directory: the network's own files, and the adapters in ``adapter/``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nas_llm.atomic_files import read_json
from nas_llm.models.fingerprint import fingerprint_of_model
from nas_llm.models.model_directory import ADAPTER
from nas_llm.models.order import write_order
from nas_llm.models.saving import save_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import strip
from nas_llm.peft.files import SETTINGS, AdapterFile, read_adapter
from nas_llm.peft.lora import Lora

SPARSE = "sparse"  # in the file of the settings: the modules that were made sparse


def save_supernet(
    supernet: Supernet, path: Path, *, tokenizer: PreTrainedTokenizerBase | None = None, peft: Lora | None = None
) -> None:
    """Writes a super-network and the adapters that ``peft`` put into it.

    Raises:
        ValueError: as :func:`nas_llm.save_pretrained`.
    """
    if peft is None:
        supernet.save(path, tokenizer=tokenizer)
        return
    whole = supernet.extract(supernet.largest())
    settings = {"method": type(peft).__name__, SPARSE: sorted(supernet.made_sparse)} | dataclasses.asdict(peft)

    adapters = AdapterFile.of(whole, str(path))
    strip(whole)
    adapters = dataclasses.replace(adapters, base=fingerprint_of_model(whole))

    def extra(folder: Path) -> None:
        write_order(supernet.order, folder)
        adapters.write(folder / ADAPTER, kind=None if type(peft) is Lora else type(peft).__name__)
        (folder / ADAPTER / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    save_pretrained(whole, path, tokenizer=tokenizer, extra=extra, setting="run_dir")


def load_supernet(path: Path, **kwargs: Any) -> Supernet:
    """Inverse of :func:`save_supernet`; ``kwargs`` go to :meth:`nas_llm.Supernet.from_pretrained`.

    Raises:
        ValueError: no super-network lies there, or its adapters do not belong to it.
    """
    supernet = Supernet.load(path, **kwargs)
    folder = path / ADAPTER
    if folder.is_dir():
        method = recorded_method(folder)
        supernet.made_sparse = frozenset(read_json(folder / SETTINGS).get(SPARSE, ()))
        method(supernet)
        read_adapter(supernet, folder, setting="run_dir")
    return supernet


def recorded_method(folder: Path) -> Lora:
    """What put the adapters of a saved super-network into it.

    Raises:
        ValueError: the file that says so is missing or damaged.
    """
    from nas_llm.peft.qa_sparse_lora import QaSparseLora
    from nas_llm.peft.sparse_lora import SparseLora

    methods = {method.__name__: method for method in (Lora, SparseLora, QaSparseLora)}
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        settings.pop(SPARSE, None)
        return methods[settings.pop("method")](**settings)
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / SETTINGS} is missing or damaged ({error}): train the super-network again"
        ) from error
