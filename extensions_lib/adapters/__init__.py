"""Small trainable modules put onto a frozen model, and taken off again without a trace."""
