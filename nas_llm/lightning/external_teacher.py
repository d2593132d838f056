"""A frozen teacher that is another model: a network of operators learns from the network it was made from (paper 3,
section 3.4), any super-network from a larger model of the same vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nas_llm.models.model_directory import resolve
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer

SETTING = "training.teacher_path"


def external_teacher(path: str, supernet: Supernet, tokenizer: PreTrainedTokenizerBase, **loading: Any) -> Supernet:
    """The whole network of ``path`` (a directory, a hub or embedded name), in evaluation mode, without gradients.

    Args:
        path: as ``model.path``.
        supernet: the student, whose logits (tokens, vocabulary) are compared with the teacher's.
        tokenizer: the student's. One beside the teacher has to give every token the same number; a directory without
            one is taken by the size of its vocabulary alone.
        loading: of :meth:`nas_llm.Supernet.from_pretrained`.

    Raises:
        ValueError: there is no such model, or it has another vocabulary.
    """
    try:
        teacher = Supernet.from_pretrained(path, **loading)
    except ValueError as error:
        raise ValueError(str(error).replace("model.path=", f"{SETTING}=", 1)) from error
    sizes = teacher.config.vocab_size, supernet.config.vocab_size
    mend = "a teacher's logits are compared token by token: choose a model of the same tokenizer"
    if sizes[0] != sizes[1]:
        raise ValueError(f"{SETTING}={path} has {sizes[0]} tokens, the model has {sizes[1]}; {mend}")
    folder = Path(resolve(path))
    if not folder.is_dir() or any(folder.glob("*token*")) or any(folder.glob("vocab.*")):
        theirs, ours = load_tokenizer(path, setting=SETTING).get_vocab(), tokenizer.get_vocab()
        if theirs != ours:
            token = next(t for t in sorted(ours.keys() | theirs.keys()) if ours.get(t) != theirs.get(t))
            raise ValueError(
                f"{SETTING}={path} numbers tokens otherwise than the model: {token!r} is {theirs.get(token, 'none')} "
                f"there and {ours.get(token, 'none')} here; {mend}"
            )
    return teacher.eval().requires_grad_(False)
