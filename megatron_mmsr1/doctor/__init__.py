"""`mmsr1 doctor`: what can be found wrong with a machine, a config or a job's nodes before they cost hours.

A check is one file of `checks/`; `check.py` says what it gets and what it returns.
"""
