"""``python -m dvrt``."""

from dvrt.cli import main

if __name__ == "__main__":
    main()
