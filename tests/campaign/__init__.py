"""Harm to real jobs, many times: each ends as promised, whatever is done to which rank at which moment."""
