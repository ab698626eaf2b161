"""`python -m ortcam` is the command `ortcam`."""

from ortcam.cli import main

if __name__ == "__main__":
    main()
