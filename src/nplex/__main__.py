"""`python -m nplex`."""

from nplex.cli import main

if __name__ == "__main__":
    main()
