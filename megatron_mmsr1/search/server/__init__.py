"""The search server: its routes, what a call passes, and how it is started."""
