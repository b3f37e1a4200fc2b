"""The settings of other trainers, as ours: tables of what their names mean, and nothing that touches a file."""
