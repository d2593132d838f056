"""One short `main(cfg)` per stage of the command line; the first line of a module is its line in `nas-llm --help`."""
