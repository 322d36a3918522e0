"""Work on several processes, started by torchrun or ``accelerate launch``, that leaves the same bytes as on one.

Every process runs the whole command on the same inputs; only what runs a model over records is dealt out
(:mod:`.dealing`), in chunks that do not depend on the number of processes. The results of a chunk go to all of them,
in the order of the chunks, so that each makes the same sums in the same order as a single process would. Writing,
printing and progress are left to the first (:mod:`.job`).
"""
