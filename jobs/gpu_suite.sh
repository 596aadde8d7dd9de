#!/bin/bash
python -m tests.gpu_record "$@"
