"""`python -m minitron_cli`, which is what the launcher of several processes runs."""

from minitron_cli.cli.app import main

if __name__ == "__main__":
    main()
