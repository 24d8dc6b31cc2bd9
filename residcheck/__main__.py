"""``python -m residcheck``."""

from residcheck.cli import main

if __name__ == "__main__":
    main(prog_name="residcheck")
