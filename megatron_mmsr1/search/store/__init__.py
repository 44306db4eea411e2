"""One SQLite file that is cache and snapshot."""
