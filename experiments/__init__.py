import btp as btp  # which lets an interrupt end `python -m btp.NAME` quietly, and so what is called from here
