"""A contract a seam: functions that any part of it, yours included, can be run through. They raise AssertionError."""
