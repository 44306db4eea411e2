"""Pure functions on tensors: advantages, losses and how they are averaged. Imports torch and nothing else."""
