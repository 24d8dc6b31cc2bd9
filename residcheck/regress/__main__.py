"""``python -m residcheck.regress``."""

from residcheck.regress.command import main

if __name__ == "__main__":
    main(prog_name="python -m residcheck.regress")
