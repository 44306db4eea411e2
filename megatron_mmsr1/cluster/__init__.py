"""Nodes and GPUs: which process runs where, and how a process is run on another node."""
