"""Tensor parallel ranks of the embedded engine: rank 0 plans, every rank carries out (docs/adr/0010).

Each rank is a whole executor with its own share of the heads, its own pools, lanes and ledger; the ranks
above 0 take requests, cancels, time and plan from rank 0. Knows no policy and no wire; only `mpi` knows MPI.
"""
