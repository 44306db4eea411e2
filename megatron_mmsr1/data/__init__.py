"""Data on their way to the model: datasets, images, positions, packing and resumable sampling. No torch here."""
