"""What the loop acts on, and how a run begins, resumes and ends."""
