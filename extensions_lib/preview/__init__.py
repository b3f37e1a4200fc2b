"""Pictures of what the model draws while it is trained, and the sheet that shows them side by side."""
