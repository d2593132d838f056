"""Tables, pictures, model cards and the report of a run: made from the files of its directory and from nothing else."""

from nas_llm.reporting.html_report import write_report
from nas_llm.reporting.model_card import write_baseline_card, write_model_card
from nas_llm.reporting.sweep import is_run
from nas_llm.reporting.sweep_report import write_sweep_report
from nas_llm.reporting.tables import front_table

__all__ = ["front_table", "is_run", "write_baseline_card", "write_model_card", "write_report", "write_sweep_report"]
