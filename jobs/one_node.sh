#!/bin/bash
mpirun -n 4 python -m mpidml train --config jobs/one_node.toml "$@"
