"""`nas-llm STAGE [overrides]`: help that lists the stages and their options, and one line for every user's mistake."""

import ast
import errno
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from nas_llm import __version__
from nas_llm.atomic_files import DISK_ERRORS
from nas_llm.config import config_dir
from nas_llm.ranks import CHILD_ARGUMENTS, is_main_process
from nas_llm.stages import modules

FULL_TRACEBACK = "NAS_LLM_TRACEBACK"
USAGE_ERROR, INTERRUPTED, UNREAD = 2, 130, 141  # UNREAD: as of a program that SIGPIPE ends
# nas-llm bench sandwich: stages that take a group's option by name
NAMED = {"bench": "bench", "analyse": "analysis", "reproduce": "reproduce"}


def main() -> None:
    """The console script."""
    arguments = sys.argv[1:]
    if not is_main_process() and CHILD_ARGUMENTS in os.environ:
        arguments = json.loads(os.environ[CHILD_ARGUMENTS])
    try:
        code = run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:  # before the stage began
        code = INTERRUPTED
    except BrokenPipeError:  # `nas-llm train --help | head`: who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        code = UNREAD
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"nas-llm {__version__}")
        return 0
    stage, rest = arguments[0], as_overrides(arguments[0], arguments[1:])
    if stage not in stages():
        return _fail(_unknown_stage(stage))
    if {"-h", "--help"} & set(rest):
        print(stage_help(stage))
        return 0
    return _launched(stage, rest)


def as_overrides(stage: str, words: Sequence[str]) -> list[str]:
    """The words behind a stage's name, of which the first may name an option of its group, as overrides."""
    if stage in NAMED and words and words[0].replace("/", "_").isidentifier():
        return [f"{NAMED[stage]}={words[0]}", *words[1:]]
    return list(words)


def stages() -> dict[str, str]:
    """The stages and the first line of what each says of itself, read without importing them."""
    return {name: (ast.get_docstring(module) or "").partition("\n")[0] for name, module in modules().items()}


def overview() -> str:
    """The text of `nas-llm --help`."""
    width = max(map(len, stages()), default=0)
    listed = "\n".join(f"  {name:<{width}}  {line}" for name, line in stages().items())
    return (
        "Compress large language models by neural architecture search.\n\n"
        "usage: nas-llm STAGE [key=value ...]\n\n"
        f"stages:\n{listed}\n\n"
        "  nas-llm STAGE --help                          the options of a stage\n"
        "  nas-llm train experiment=quickstart           the whole job on the embedded model, in minutes\n"
        "  nas-llm train ... --cfg job                   show the configuration instead of running it\n"
        "  nas-llm train -m sampler=random,sandwich ...  sweep; hydra/launcher=joblib runs the jobs in parallel\n"
        "  nas-llm --version\n"
    )


def stage_help(stage: str) -> str:
    """The text of `nas-llm STAGE --help`: the overrides people need most, and the groups and options it reads."""
    from nas_llm.config_errors import all_groups, options
    from nas_llm.stage_kinds import CONTINUING, RESUMING, STARTING, TRAINING
    from nas_llm.stage_reads import OF_EVERY_STAGE, declared, overrides_of

    folder, reads = config_dir(), declared()[stage].keys
    known = sorted(all_groups(folder))
    of_stage = (*reads, *(OF_EVERY_STAGE if stage in (*TRAINING, *STARTING, *RESUMING) else ()))
    read = [group for group in known if group.partition("/")[0] in of_stage]
    lines = [stages()[stage], f"\nusage: nas-llm {stage} [key=value ...] [--cfg job] [-m] [--config-dir DIR]"]
    lines += ["\noverrides people need most:", *_columns(overrides_of(stage))]
    if read:
        lines.append(f"\ngroups and their options{' (objectives takes a list)' if 'objectives' in read else ''}:")
        lines += _columns([(f"{group}=", ", ".join(options(folder, group))) for group in read])
        lines.append("Own options: --config-dir DIR with DIR/GROUP/NAME.yaml in it.")
    if reads:
        lines.append(f"\n`nas-llm {stage} --cfg job` shows every key. Those that can be overridden here:")
        lines.append(textwrap.fill(", ".join(reads), 110, initial_indent="  ", subsequent_indent="  "))
    if stage in CONTINUING:
        lines.append("It starts from the overrides that the run in run_dir was made with.")
    return "\n".join([*lines, f"{FULL_TRACEBACK}=1 shows the traceback behind an error's line."])


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [
        textwrap.fill(
            meaning, max(120, width + 60), initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4)
        )
        for name, meaning in rows
    ]


def _launched(stage: str, arguments: list[str]) -> int:
    from nas_llm.config_errors import CONFIG_ERRORS, one_line
    from nas_llm.launch import launch
    from nas_llm.stage_run import Interrupted

    try:
        launch(stage, arguments)
    except CONFIG_ERRORS as error:
        return _fail(one_line(error, arguments, config_dir()), error)
    except ValueError as error:
        return _fail(" ".join(str(error).split()), error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return _fail(
            f"{error.filename or 'a file'} could not be written: {os.strerror(error.errno or errno.EIO)}", error
        )
    except Interrupted as stop:
        print(f"\nnas-llm: interrupted; go on with: {stop}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _unknown_stage(stage: str) -> str:
    known = list(stages())
    meant = get_close_matches(stage, known, n=1)
    guess = f" did you mean {meant[0]}?" if meant else ""
    return f"there is no stage {stage!r}:{guess} The stages are {', '.join(known)}"


def _fail(line: str, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get(FULL_TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error)
    elif isinstance(error, ValueError) and _is_foreign(error):
        line = f"{line} ({FULL_TRACEBACK}=1 shows where)"
    print(f"nas-llm: error: {line}", file=sys.stderr)
    return USAGE_ERROR


def _is_foreign(error: BaseException) -> bool:
    """Whether the error was raised by another library, so that its message alone may not say enough."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parent)
    return bool(frames) and not frames[-1].filename.startswith(package)


if __name__ == "__main__":
    main()
