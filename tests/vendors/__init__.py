"""Loopback servers that speak the vendors' documented wire formats, and misbehave on demand."""
