"""Checkpoint directories, training ones and Hugging Face ones alike: what they hold, and whether they are whole."""
