"""The laboratory: tasks, training, scores and the search for n, built on the library's public names alone."""
