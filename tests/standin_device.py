"""A device for machines without a GPU: its tensors live on the processor and say that they do not.

Importing this registers torch's device "standin" and Lightning's accelerator of that name. An operation on tensors of
two devices, a generator of the wrong one and `.numpy()` fail as they do with CUDA, so that whatever runs here moves
what it should. What it cannot show: kernels, streams, memory, precision. Run as a program, it runs the command lines
of `nas-llm` on its standard input, one JSON list of words a line, with the networks of all stages on that device.

Registration is of the whole process and cannot be taken back: never import it in a process of other tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
MOVES = ("aten::copy_", "aten::_to_copy", "aten::_foreach_copy_")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # by either device's


class StandinModule:
    """What `torch.standin` answers."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random draws are the processor's."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class StandinTensor(torch.Tensor):
    """Holds a tensor of the processor, ``raw``, and is of the device "standin"."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls: type[StandinTensor], raw: torch.Tensor) -> StandinTensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._has_compatible_shallow_copy_type.default:
            return False  # so that a module that is moved gets new parameters
        given = dict(kwargs or {})
        leaves = tree_leaves((args, given))
        place = given.pop("device", None)
        stays = any(isinstance(leaf, cls) for leaf in leaves) if place is None else torch.device(place).type == NAME
        refuse_mixed(func, args, leaves, stays)
        here = {} if place is None else {"device": torch.device("cpu")}
        known = {id(leaf.raw): leaf for leaf in leaves if isinstance(leaf, cls)}  # of operations in place

        def held(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or isinstance(value, cls):
                return value
            return known[id(value)] if id(value) in known else cls(value)

        with torch.inference_mode(False):  # a view of a parameter is none of inference's tensors
            out = func(*tree_map(raw_of, args), **tree_map(raw_of, given), **here)
            return out if not stays else tree_map(held, out)


def raw_of(value: Any) -> Any:
    """What a tensor of the device holds; anything else as it is."""
    return raw_of(value.raw) if isinstance(value, StandinTensor) else value


def refuse_mixed(func: Any, args: Sequence[Any], leaves: Sequence[Any], stays: bool) -> None:
    """Raises RuntimeError where CUDA would."""
    name = func._schema.name
    plain = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, StandinTensor)]
    if name in INDEXED:
        fine = isinstance(args[0], StandinTensor)
        plain = [value for value in args[2:] if any(value is one for one in plain)] if fine else plain
        if not fine:
            raise RuntimeError(f"{func}: an index on {NAME} for a tensor on cpu")
    wrong = [tensor for tensor in plain if tensor.dim() > 0]  # scalars of the processor are welcome everywhere
    if wrong and name not in MOVES:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, found {NAME} and cpu, {tuple(wrong[0].shape)}"
        )
    if stays and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{func}: expected a '{NAME}' device type for generator but found 'cpu'")


class StandinAccelerator(Accelerator):
    """Lightning's view of it: `trainer.accelerator=standin`."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def empty(size: Sequence[int], *, dtype: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
    return StandinTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, **_: Any) -> torch.Tensor:
    return StandinTensor(torch.empty_strided(size, stride, dtype=dtype))


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    raw_of(target).copy_(raw_of(source))
    return target


def arange(*bounds: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
    return StandinTensor(torch.arange(*bounds, dtype=dtype))


_setup_privateuseone_for_python_backend(NAME, backend_module=StandinModule())  # type: ignore[no-untyped-call]
KERNELS = torch.library.Library("aten", "IMPL")
KERNELS.impl("empty.memory_format", empty, "PrivateUse1")
KERNELS.impl("empty_strided", empty_strided, "PrivateUse1")
KERNELS.impl("_copy_from", copy_from, "PrivateUse1")
for name in ("arange", "arange.start", "arange.start_step"):  # torch's own resizes what it was given
    KERNELS.impl(name, arange, "PrivateUse1")
AcceleratorRegistry.register(NAME, StandinAccelerator, description="tensors that say that they are not on the cpu")


def save_copies(save: Any) -> Any:
    """`save_pretrained` of copies on the processor: it compares addresses."""

    def saved(model: Any, *args: Any, **kwargs: Any) -> Any:
        copies: dict[int, torch.Tensor] = {}
        state = {
            name: copies.setdefault(id(tensor), tensor.cpu())
            for name, tensor in model.state_dict(keep_vars=True).items()
        }
        return save(model, *args, **{"state_dict": state, **kwargs})

    return saved


def main() -> int:
    """The first status that is not 0, or 0."""
    import safetensors.torch

    save_file = safetensors.torch.save_file  # reads memory, where these tensors have none
    safetensors.torch.save_file = lambda tensors, *args, **kwargs: save_file(
        {name: tensor.cpu() for name, tensor in tensors.items()}, *args, **kwargs
    )
    from transformers import PreTrainedModel

    from nas_llm.cli import run
    from nas_llm.stages import analyse, distill, prune, search, subjects

    PreTrainedModel.save_pretrained = save_copies(PreTrainedModel.save_pretrained)  # type: ignore[method-assign]
    for stage in (analyse, distill, prune, search, subjects):
        stage.device = lambda cfg: f"{NAME}:0"  # type: ignore[attr-defined]
    for line in sys.stdin:
        words = json.loads(line)
        sys.argv = ["nas-llm", *words]
        if status := run(words):
            print(f"status {status}: nas-llm {' '.join(words)}", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
