"""`python -m nplex`."""

from nplex.cli import main

main()
