#!/bin/bash
# Begins the run, or goes on with it: start it again after it was ended, by whatever.
mpirun -n 4 python -m mpidml train --config jobs/long.toml --out runs/long --resume auto "$@"
