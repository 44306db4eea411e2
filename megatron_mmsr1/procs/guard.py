"""A small process that stands between a supervisor and one command, so that nothing the command started outlives either.

Run by path with the standard library only (`python -I -S guard.py LIFELINE GRACE DESCRIPTORS SHARED COMMAND…`): it starts in
milliseconds and never imports the package. It leads its own session, and as a subreaper it inherits every orphan below it,
also those that moved to a session of their own (as torchrun's workers do). It ends the command when the lifeline (the read
end of a pipe whose write end only the supervisor holds) closes, when its parent dies, or on SIGTERM: TERM to the group, then
to the orphans, then KILL to every descendant left after GRACE seconds. Its exit code is the command's (128 + n for signal n).
DESCRIPTORS: open files that the command inherits, as numbers joined by commas; - for none.

The command gets a temporary directory of its own (TMPDIR), which is removed with it. SHARED: how names in /dev/shm begin,
joined by commas, that the command leaves there when it is killed; those that it has mapped are removed too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def descendants(root: int) -> list[int]:
    """Every live (not zombie) process below `root`, read from /proc."""
    children: dict[int, list[int]] = {}
    zombies: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                state, parent = f.read().rpartition(b")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
        children.setdefault(int(parent), []).append(int(name))
        if state == b"Z":
            zombies.add(int(name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        queue += below
        found += [p for p in below if p not in zombies]
    return found


def reap(main: int) -> int | None:
    """Collect ended children, orphans too; the exit code of `main` if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == main:
            value = os.waitstatus_to_exitcode(status)
            code = value if value >= 0 else 128 - value


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(pid, number)


def end_all(main: int, grace: float) -> int | None:
    """TERM the group; once `main` is gone TERM what is left elsewhere; KILL all after `grace` seconds.

    Returns the exit code of `main` if it was collected here.
    """
    code = None
    os.killpg(0, signal.SIGTERM)  # this process ignores it by now
    deadline = time.monotonic() + grace
    asked = False
    while True:
        left = descendants(os.getpid())  # before the collecting: what ends in between is collected in the next round
        seen = reap(main)
        code = seen if seen is not None else code
        if not left:
            return code
        if time.monotonic() > deadline:
            send(left, signal.SIGKILL)
        elif not asked and main not in left:
            send(left, signal.SIGTERM)
            asked = True
        time.sleep(0.02)


def shared(prefixes: tuple[str, ...]) -> set[str]:
    """Files of /dev/shm that processes below this one have mapped and whose names begin so."""
    found: set[str] = set()
    for pid in descendants(os.getpid()) if prefixes else []:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as f:  # it ended meanwhile
            for line in f:
                path = line.rstrip("\n").partition("/")[2]
                if path.startswith(tuple(f"dev/shm/{p}" for p in prefixes)) and not path.endswith(" (deleted)"):
                    found.add(f"/{path}")
    return found


def remove(directory: str) -> None:
    """With all in it; nothing if it is not there."""
    import shutil  # late: a guard starts in milliseconds

    shutil.rmtree(directory, ignore_errors=True)


def _wake(*_: object) -> None:
    """A signal that only has to end a wait."""


def main() -> int:
    lifeline, grace, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[5:]
    descriptors = [] if sys.argv[3] == "-" else [int(n) for n in sys.argv[3].split(",")]
    prefixes = () if sys.argv[4] == "-" else tuple(sys.argv[4].split(","))
    parent = os.getppid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # SIGUSR1, because the kernel sends it when the *thread* that forked ends too: getppid() tells the two apart.
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    stop: list[bool] = []

    def asked_to_stop(*_: object) -> None:
        stop.append(True)

    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _wake)
    signal.signal(signal.SIGUSR1, _wake)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, asked_to_stop)

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored signal would stay ignored after exec
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    own = f"{os.environ.get('TMPDIR', '/tmp').rstrip('/')}/mmsr1.{os.getpid()}"
    try:
        remove(own)  # of another machine's or an earlier boot's guard with this pid
        os.mkdir(own, 0o700)
    except OSError as e:
        print(f"cannot make a temporary directory for {command[0]}: {e}", file=sys.stderr, flush=True)
        return 127
    env = {**os.environ, "TMPDIR": own}
    try:
        process = subprocess.Popen(command, preexec_fn=in_child, stdin=subprocess.DEVNULL, pass_fds=descriptors, env=env)
    except OSError as e:
        remove(own)
        print(f"cannot start {command[0]}: {e}", file=sys.stderr, flush=True)
        return 127
    for number in descriptors:
        os.close(number)  # the command's alone: a socket must close when the command closes it
    code = None
    while code is None and not stop and os.getppid() == parent:
        ready, _, _ = select.select([lifeline, wake_read], [], [], 1.0)
        if lifeline in ready:
            break
        if wake_read in ready:
            os.read(wake_read, 4096)
        code = reap(process.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    left = shared(prefixes)
    late = end_all(process.pid, grace)
    for path in left:
        with contextlib.suppress(FileNotFoundError):  # its owner has removed it
            os.unlink(path)
    remove(own)
    return next((c for c in (code, late) if c is not None), 1)


if __name__ == "__main__":
    sys.exit(main())
