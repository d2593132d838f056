"""Operators of a teacher's sublayers: which there are, how they come to be, what they cost and how they are chosen
(UNAST, paper 3), one method a file.
"""
