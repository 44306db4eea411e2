"""The OpenAI-compatible gateway: searched, sourced answers for any client of chat completions (`app.create_app`)."""
