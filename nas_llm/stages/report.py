"""Makes report.html, the pictures and the tables of a run once more, from the files of its directory alone."""

from omegaconf import DictConfig

from nas_llm.reporting import front_table, write_report


def main(cfg: DictConfig) -> None:
    """Rebuild the report of `run_dir` and print the front."""
    page = write_report(cfg.run_dir)
    print(front_table(cfg.run_dir))
    print(f"report: {page}")
