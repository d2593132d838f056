"""Analyses of a network before it is trained: ``nas-llm analyse NAME``, NAME an option of the group ``analysis``.

An analysis is a frozen dataclass in ``nas_llm/analysis/NAME.py`` whose fields are ``conf/analysis/NAME.yaml``. It is
called with a :class:`Subject`, from which it takes what it needs, writes its CSV and its pictures into
``subject.run_dir`` and returns :class:`Findings`. A module of ``nas_llm/reporting`` draws the pictures, from the CSV.
"""

from nas_llm.analysis.subject import Analysis, Findings, Subject

__all__ = ["Analysis", "Findings", "Subject"]
