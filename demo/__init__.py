"""The app, in Gradio. Nothing in it asks any other host for anything. It imports `serving`; `serving` imports nothing of it."""
