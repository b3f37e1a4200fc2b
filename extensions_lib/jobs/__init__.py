"""A job: its folder, its events on disk, its run from settings to result."""
