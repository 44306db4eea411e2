"""A trained model as others get it: its card and its serving.yaml."""
