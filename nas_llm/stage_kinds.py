"""What the stages do with a run: start it, go on with it, or read its files alone."""

CONTINUING = ("search", "evaluate", "export", "report")  # stages that work on what an earlier one left
TRAINING = ("train", "pretrain")  # stages that start a run, or resume it with ckpt_path
STARTING = ("prune",)  # stages that start a run, and do all of it at once
RESUMING = ("distill",)  # stages that go on by themselves where run_dir holds what they began
FILES_ONLY = ("report",)  # stages that read a run directory and need nothing heavy
