"""Pages from the open web: addresses that may be asked, fetching, decoding, reading."""
