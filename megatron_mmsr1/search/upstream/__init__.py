"""What stands between a backend's file and its vendor: queue, rate, breaker, ledger, deadline, one exchange."""
