"""What other Pythons run: this folder is put on their path, where it is the package ``witness``."""
