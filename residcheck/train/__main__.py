"""``python -m residcheck.train``."""

from residcheck.train.command import main

if __name__ == "__main__":
    main(prog_name="python -m residcheck.train")
