"""Run roles on virtual clocks: the same objects that run on MPI, with seeded speeds, networks and delays."""
