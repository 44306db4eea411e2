"""What a run needs of each GPU and how long a step takes, from config and config.json alone, before anything is started."""
