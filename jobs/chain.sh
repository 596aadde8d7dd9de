#!/bin/bash
set -e
mpirun -n 2 python -m mpidml train --config jobs/chain.toml --out "$@"
mpirun -n 2 python -m mpidml evaluate "$1"
python -m mpidml evaluate --plot --out "$1/report" "$1"
