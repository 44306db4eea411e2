"""Processes that are started, watched and ended; what this machine has."""
