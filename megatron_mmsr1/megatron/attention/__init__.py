"""The trainer's attention over packs, by one seam: a kernel a file, each of which says what it lacks (`kernel.py`). One of them
is chosen when the model is built (`choice.py`), by name or as the first that can, and said at the run's start."""
