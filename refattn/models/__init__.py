"""Real networks built only from the operations of this project, with the readers of their files."""
