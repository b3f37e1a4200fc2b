"""The settings of a job: pure data, standard library only, each declared once."""
