"""Entry point: composes the config and hands it to the runner. `python run.py --help` shows what can be set."""

from btp.runner.cli import main

if __name__ == "__main__":
    main()
