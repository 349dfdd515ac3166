"""`python -m rfedge`, which is also how torchrun starts it: `torchrun --standalone --nproc-per-node 2 -m rfedge ...`."""

from rfedge.cli.app import main

if __name__ == "__main__":
    main()
