"""`python -m edgezo`."""

from edgezo.cli import main

if __name__ == "__main__":  # a process spawned by a command imports this file again
    main()
