"""The checks, a file each, in the order in which they run. This file is read by `mmsr1 --help`."""

NAMES = ("machine", "attention", "allreduce", "disk", "shared", "clock", "search", "engine")
