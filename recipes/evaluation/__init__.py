"""What ``python -m recipes.evaluate`` is made of: tasks, their rows, and the run folder's files."""
