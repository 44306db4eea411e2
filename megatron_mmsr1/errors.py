"""The two kinds of failure that a command may end with, so that every verb reports them alike."""


class UsageError(Exception):
    """The person's input is wrong (a key, a flag, a path): the message names it and what to do. Exit code 2."""


class RunError(Exception):
    """The input was fine, the world was not (a dead engine, a torn file): the message names it and what to do. Exit code 1."""
