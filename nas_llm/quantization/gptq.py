"""GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323, algorithm 1).

Columns of W (out, in) are rounded one after the other; each one's error is made up for by those that are left, F:

    w_F <- w_F - (w_j - w~_j) / [H_F^-1]_jj * [H_F^-1]_j,      H = 2 X X^T + damping

(equation 2), X (in, tokens) what the layer reads once the blocks before it are quantised. With the upper Cholesky
factor U of the whole inverse Hessian, H^-1 = U^T U, the row U_jj U_j is [H_F^-1]_j for every j, and the same for all
rows of W. Errors are passed on inside a block of columns at once, to those behind it when it is done (lazy batches).

A group's grid is made of its weights as they are when its first column is reached. With ``act_order`` columns go by
falling [X X^T]_jj instead, and every group's grid is made beforehand of the weights as they were: groups stay
neighbours along the inputs, so that nothing has to be looked up by column when the network runs. In float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_llm.models.block_walk import walk
from nas_llm.models.input_statistics import Hessian, inverse_cholesky
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.quantized_weight import QuantizedWeight, grid, round_to_codes
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.report import LayerReport, QuantizationReport
from nas_llm.quantization.settings import GPTQSettings
from nas_llm.quantization.targets import layers_to_quantize

if TYPE_CHECKING:
    from nas_llm.quantization import Batches


@dataclass(frozen=True)
class GPTQ(GPTQSettings):
    """Fields as in :mod:`nas_llm.quantization.settings`.

    Raises:
        ValueError: as :class:`GPTQSettings`; when called, beside what every method raises: targets outside of the
            blocks, a Hessian that has no inverse with this damping.
    """

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Batches) -> QuantizationReport:
        """Raises as :class:`nas_llm.quantization.Quantization`."""
        modules = layers_to_quantize(supernet, self.targets, self.group_size)
        self._refuse_outside(supernet, modules)
        names, found = set(modules), {}
        modules.clear()  # a layer's dense weight goes when the layer is replaced
        for block in walk(supernet, batches):
            hessians = block.collect(Hessian, names)
            for projection in block.projections:
                if projection.name not in names:
                    continue
                hessian, weight = hessians.pop(projection.name).matrix, projection.weight
                try:
                    quantized = self.quantize(weight, hessian)
                except torch.linalg.LinAlgError as error:
                    raise ValueError(
                        f"quantization.damping={self.damping}: the Hessian of what {projection.name} reads has no "
                        f"inverse with it; set quantization.damping={max(10 * self.damping, 0.01):g}, or calibrate on "
                        "more data with data.calibration_size="
                    ) from error
                bias = projection.module._parameters.get("bias")
                layer = QuantizedLinear.of(quantized, bias)
                found[projection.name] = LayerReport.of(weight, layer, hessian)
                del hessian, weight
                supernet.quantize_module(projection.name, layer)
        return QuantizationReport(found)

    def quantize(self, weight: Tensor, hessian: Tensor) -> QuantizedWeight:
        """The quantised weight of one layer.

        Args:
            weight: (out, in), floating; not changed. The scales have its dtype.
            hessian: (in, in), float32, as 2 X X^T; not changed.

        Raises:
            torch.linalg.LinAlgError: the damped Hessian has no inverse.
        """
        width, bits = weight.shape[1], self.bits
        work, dtype = weight.float().clone(), weight.dtype
        keep = (work != 0).to(work.dtype) if self.keep_zeros and bool((work == 0).any()) else None
        order = hessian.diagonal().argsort(descending=True, stable=True) if self.act_order else None
        scales, zeros = grid(work.unflatten(1, (-1, self.group_size)), bits, dtype)
        if order is not None:
            work, hessian = work[:, order], hessian[order][:, order]
            keep = keep if keep is None else keep[:, order]
        factor = inverse_cholesky(hessian, self.damping)
        codes = torch.empty_like(work, dtype=torch.uint8)
        block = max(self.block_size // self.group_size, 1) * self.group_size  # whole groups
        for start in range(0, width, block):
            stop = min(start + block, width)
            inside, upper = work[:, start:stop], factor[start:stop, start:stop]
            errors = torch.zeros_like(inside)
            for column in range(stop - start):
                place = start + column
                group = place // self.group_size if order is None else int(order[place]) // self.group_size
                if order is None and place % self.group_size == 0:
                    of_group = inside[:, column : column + self.group_size]
                    scales[:, group], zeros[:, group] = grid(of_group, bits, dtype)
                value = inside[:, column]
                code = round_to_codes(value, scales[:, group], zeros[:, group], bits)
                codes[:, place] = code
                rounded = (code.float() - zeros[:, group]) * scales[:, group].float()
                errors[:, column] = (value - rounded) / upper[column, column]
                inside[:, column:].addr_(errors[:, column], upper[column, column:], alpha=-1)
                if keep is not None:
                    inside.mul_(keep[:, start:stop])
            work[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
            if keep is not None:
                work[:, stop:].mul_(keep[:, stop:])
        if order is not None:
            codes = codes[:, order.argsort()]
        return QuantizedWeight(codes, scales, zeros, bits, self.group_size)

    def _refuse_outside(self, supernet: Supernet, modules: dict[str, torch.nn.Linear]) -> None:
        inside = {id(module) for layer in supernet.layer_modules for module in layer}
        for name, module in modules.items():
            if id(module) not in inside:
                raise ValueError(
                    f"quantization.targets: {name} lies outside of the transformer blocks, through which GPTQ walks: "
                    "leave it out, or choose quantization=rtn"
                )
