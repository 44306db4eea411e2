"""The two kinds of failure that a command may end with, so that every verb reports them alike."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


class UsageError(Exception):
    """The person's input is wrong (a key, a flag, a path): the message names it and what to do. Exit code 2."""


class RunError(Exception):
    """The input was fine, the world was not (a dead engine, a torn file): the message names it and what to do. Exit code 1."""


def exit_with_message(main: Callable[[], None]) -> NoReturn:
    """Run an entry point and exit as every verb does: 2 for usage, 1 for failure, 130 for an interrupt.

    A rank that fails must leave at once (its peers wait for it in a collective), so this ends the process without the
    interpreter's slow teardown.
    """
    code = 0
    try:
        main()
    except UsageError as e:
        print(f"mmsr1: {e}", file=sys.stderr)
        code = 2
    except RunError as e:
        print(f"mmsr1: {e}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
