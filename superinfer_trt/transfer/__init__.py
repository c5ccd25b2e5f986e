"""Transfer engines: what moves blocks between HBM and DRAM."""
