"""Tables and figures of papers made again: ``nas-llm reproduce paper1/table1``, an option of the group ``reproduce``.

A specification (``spec``) names the published rows (``published``), and for every row the command lines that make it
(``runs``) and where its numbers then lie (``records``); ``table`` sets both side by side, ``estimate`` says what the
commands would take at full size.
"""
