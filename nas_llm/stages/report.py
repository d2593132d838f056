"""Makes the report, pictures and tables of a run, or of the runs of a sweep, from the files of its folder alone."""

from pathlib import Path

from omegaconf import DictConfig

from nas_llm.reporting import front_table, is_run, write_report, write_sweep_report
from nas_llm.reporting.operator_files import NETWORKS_FILE
from nas_llm.reporting.operator_tables import networks_table

READS = ()
OVERRIDES = {
    "run_dir=DIR": "of the run whose report is made again; or the folder of a sweep, whose runs are compared",
}


def main(cfg: DictConfig) -> None:
    """Rebuild the report of `run_dir` and print the front; of a sweep's folder, compare its arms over the seeds."""
    if not is_run(Path(cfg.run_dir)):
        print(write_sweep_report(cfg.run_dir))
        print(f"written: {cfg.run_dir}/sweep*.png, {cfg.run_dir}/sweep*.csv")
        return
    page = write_report(cfg.run_dir)
    of_operators = (Path(cfg.run_dir) / NETWORKS_FILE).is_file()
    print(networks_table(cfg.run_dir) if of_operators else front_table(cfg.run_dir))
    print(f"report: {page}")
