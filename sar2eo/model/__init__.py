"""What a translator is, and the one of the package: C-DiffSET."""
