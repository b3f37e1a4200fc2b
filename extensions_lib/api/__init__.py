"""The HTTP API: jobs over HTTP, for scripts and for our own page."""
