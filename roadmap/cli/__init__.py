"""The command lines that train, evaluate and collect, of argparse alone; `roadmap.__main__` has them all."""
