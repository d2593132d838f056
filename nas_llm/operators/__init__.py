"""Block-wise distilled operators and networks of them (UNAST, paper 3)."""
