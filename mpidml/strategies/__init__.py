"""Ways to train one model over ranks: each file is one strategy, its name the choice of --strategy; `base.py` is the run around them."""
