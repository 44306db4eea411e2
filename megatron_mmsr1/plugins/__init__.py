"""Parts by name: algorithms, rewards, tools, protocols, model families, engines, weight transports, search backends."""
