"""`python -m viewrank COMMAND …` is `viewrank COMMAND …`, for launchers that take a module."""

from tools.__main__ import main

if __name__ == "__main__":
    main()
