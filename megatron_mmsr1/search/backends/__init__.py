"""Where results come from: a backend a file in text/, image/, read/ and summarise/."""
