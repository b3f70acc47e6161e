"""Ground of every component: contracts, errors, atomic files, how a step runs and what is recorded of it."""
