"""Operators in the place of sublayers (UNAST, paper 3): which ones there are, how they begin; one method a file."""

from nas_llm.operator_network import Sublayer

Place = tuple[int, Sublayer]
"""(layer, sublayer)."""
