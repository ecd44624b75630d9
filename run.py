"""Entry point of a clone, as `btp` is of an installation. `python run.py --help` shows what can be set.

Shells complete its words (`python run.py -sc install=bash`); fish looks for @hydra.main in this file first.
"""

from btp.__main__ import main

if __name__ == "__main__":
    main()
