"""A process with everything imported once, which runs or checks command lines: what `nas-llm reproduce` starts.

One JSON object a line, in and out:

    {"run": [words], "log": path}        a copy of the process runs `nas-llm words`, and prints to path -> {"status": n}
    {"check": [[words], ...]}            composes and checks them in their order, runs none
                                         -> {"configurations": [one each]}, or {"error": what the first wrong one says}
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nas_llm import overrides as text
from nas_llm.cli import INTERRUPTED, as_overrides, run
from nas_llm.composition import checked
from nas_llm.config import config_dir
from nas_llm.config_errors import CONFIG_ERRORS, all_groups, one_line
from nas_llm.ranks import is_main_process
from nas_llm.stage_kinds import CONTINUING

WATCH_S, PATIENCE_S = 0.1, 30.0  # between two looks at a copy; from Ctrl-C until it is killed


def main() -> None:
    """Answer requests until there are no more."""
    for heavy in ("lightning.pytorch", "peft", "transformers"):
        importlib.import_module(heavy)  # for the copies of this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command; who asked for it ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes elsewhere
    for line in sys.stdin:
        request = json.loads(line)
        answer = _checked(request["check"]) if "check" in request else {"status": _run(request["run"], request["log"])}
        print(json.dumps(answer), file=answers, flush=True)


def configurations(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What the stages of these command lines would get; one that continues a run gets what an earlier line began.

    Raises:
        ValueError: of the first that is wrong.
    """
    begun: dict[str | None, list[str]] = {}
    found = []
    known = all_groups(config_dir())
    for stage, *words in commands:
        given = text.quoted(as_overrides(stage, words))
        try:
            run_dir = text.value_of(given, "run_dir")
            continued = stage in CONTINUING and run_dir in begun
            overrides = text.merge(begun[run_dir], given, known) if continued else given
            cfg = checked([*overrides, f"stage={stage}"], given)
        except (ValueError, *CONFIG_ERRORS) as error:
            line = one_line(error, given, config_dir()) if isinstance(error, CONFIG_ERRORS) else str(error)
            raise ValueError(f"nas-llm {stage} {' '.join(words)}: {line}") from error
        if not continued and stage not in CONTINUING:
            begun[run_dir] = text.to_record(given)
        plain = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(plain, dict)
        found.append({str(key): value for key, value in plain.items() if key != "reproduce"})
    return found


def _checked(commands: Sequence[Sequence[str]]) -> Mapping[str, Any]:
    try:
        return {"configurations": configurations(commands)}
    except ValueError as error:
        return {"error": str(error)}


def _run(words: Sequence[str], log: str) -> int:
    """The exit status of a command line that a copy of this process has run. Where the one who asked has ended before,
    the copy is stopped as by Ctrl-C: nobody would record what it makes."""
    pid = os.fork()
    if pid == 0:
        _become(words, Path(log))
    patience: float | None = None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if patience is None and select.select([sys.stdin.fileno()], [], [], WATCH_S)[0]:  # no request follows: closed
            os.kill(pid, signal.SIGINT)
            patience = time.monotonic() + PATIENCE_S
        elif patience is not None:
            time.sleep(WATCH_S)
            if time.monotonic() > patience:
                os.kill(pid, signal.SIGKILL)


def _become(words: Sequence[str], log: Path) -> None:
    """In the copy: it never returns."""
    status = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("w") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        sys.argv = ["nas-llm", *words]
        status = run(words)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception:  # whatever it is: this copy may not return into the code of the process that it was made of
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    assert is_main_process()
    main()
