"""The two kinds of failure that a command may end with, so that every verb reports them alike."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# Where a child process leaves its failure for whoever started it; unset, nobody asks.
REPORT = "MMSR1_FAILURE"
FULL = (errno.ENOSPC, errno.EDQUOT)


class UsageError(Exception):
    """The person's input is wrong (a key, a flag, a path): the message names it and what to do. Exit code 2."""


class RunError(Exception):
    """The input was fine, the world was not (a dead engine, a torn file): the message names it and what to do. Exit code 1."""


class Interrupted(RunError):
    """Something died, or the run was asked to stop: the same command goes on from the latest checkpoint. Exit code 75, at which
    a job's script has it queued again."""


AGAIN = 75  # EX_TEMPFAIL of sysexits.h


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed for want of room or of quota. Libraries that write for us (torch, safetensors) say it in words."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(os.strerror(number) in str(error) for number in FULL)


def full_disk(error: BaseException) -> str:
    """What a person is told of such an error."""
    name = getattr(error, "filename", None)
    return f"the disk is full, or the quota there is used up{f', writing {name}' if name else ''} ({error}): make room on it"


def exit_with_message(main: Callable[[], None]) -> NoReturn:
    """Run an entry point and exit as every verb does: 2 for usage, 1 for failure, 75 for what may go well when it is tried
    again, 130 for an interrupt.

    A rank that fails must leave at once (its peers wait for it in a collective), so this ends the process without the
    interpreter's slow teardown.
    """
    code = 0
    try:
        main()
    except UsageError as e:
        code = 2
        _leave(str(e), code)
    except RunError as e:
        code = AGAIN if isinstance(e, Interrupted) else 1
        _leave(str(e), code)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as e:  # argparse, after --help or a wrong flag
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException as e:
        traceback.print_exc()
        rank = f"rank {os.environ.get('RANK', '0')}"
        if is_full_disk(e):
            code = 1
            _leave(f"{rank}: {full_disk(e)}; the same command then resumes", code)
        else:
            code = AGAIN  # most often a peer that died: the collective that it was in fails here
            what = "lost another rank, which was killed or whose node is gone" if lost_peer(e) else "met what should not happen"
            _leave(f"{rank} {what}: {type(e).__name__}: {e}", code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# What a person's path does to a file operation. Other errors of the system are not theirs.
_OF_A_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT}


def of_a_file(error: BaseException) -> tuple[str, int] | None:
    """(message, exit code) for an OSError about a file that a person can mend; None for any other error."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    where = str(error.filename2 or error.filename)
    if error.errno in _OF_A_PATH:
        return f"{where}: {error.strerror}: name another path, or make this one readable and writable", 2
    if error.errno in _OF_A_DISK:
        return f"{where}: {error.strerror}: make room, then the same command goes on", 1
    return None


# What gloo and NCCL say in a collective whose other end is gone.
_OF_A_PEER = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Broken pipe")


def lost_peer(error: BaseException) -> bool:
    """Whether this rank failed because another one had ended."""
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OF_A_PEER)


def _leave(message: str, code: int) -> None:
    """On stderr, and in the report if it is the first: the others fail because this one left."""
    print(f"mmsr1: {message}", file=sys.stderr)
    path = os.environ.get(REPORT)
    if path:
        # OSError: another rank was first, or the disk is full, which whoever started this sees for himself (procs.causes).
        with contextlib.suppress(OSError), open(path, "x", encoding="utf-8") as f:
            json.dump({"message": message, "code": code}, f)


def left_by_child(path: Path) -> UsageError | RunError | None:
    """The failure that a child reported at `path`; None if it left none, or was killed while it wrote."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return {2: UsageError, AGAIN: Interrupted}.get(report["code"], RunError)(report["message"])
