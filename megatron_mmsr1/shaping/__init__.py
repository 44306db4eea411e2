"""What a step trains on, beside how (`algorithm/`): pure functions on rewards, lengths and groups, an idea a file."""
