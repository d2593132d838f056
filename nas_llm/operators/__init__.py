"""Operators that replace sublayers of a teacher, and the search for architectures made of them."""
