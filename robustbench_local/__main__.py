"""`python -m robustbench_local` is the command `robust`."""

from robustbench_local.cli import main

if __name__ == "__main__":
    main()
