"""Operators of a teacher's sublayers: pools, first weights, block-wise distillation, files (UNAST, paper 3)."""
