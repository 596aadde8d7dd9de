#!/bin/bash
mpirun -n 4 python -m mpidml train --config jobs/nodes.toml "$@"
