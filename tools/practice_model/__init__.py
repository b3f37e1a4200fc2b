"""How the practice model is made: the parts of tools/train_practice_model.py."""
