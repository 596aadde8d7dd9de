#!/bin/bash
python -m mpidml scale --config jobs/scale.toml --ranks 1,2,4 --out runs/scale "$@"
