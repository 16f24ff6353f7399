"""`python -m zsseg` is the same command as `zsseg`."""

from zsseg.cli import main

if __name__ == "__main__":
    main()
