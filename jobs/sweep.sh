#!/bin/bash
mpirun -n 2 python -m mpidml compare --config jobs/sweep.toml --lr 0.01,0.03,0.1,0.3 "$@"
