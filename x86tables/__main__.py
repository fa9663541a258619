"""`python -m x86tables`."""

from .commands import main

if __name__ == "__main__":
    raise SystemExit(main())
