"""Runs as Slurm jobs: a script is written beside the run, checked, submitted, followed. `scripts/` is what runs in the job."""
