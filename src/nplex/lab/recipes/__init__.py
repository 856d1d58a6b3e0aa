"""One file per experiment: each gives a frozen Recipe, and says paper table, expected score and time."""
