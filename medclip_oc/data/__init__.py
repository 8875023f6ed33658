"""Shards to batches: which pairs a run trains on or measures, in which order, as its model reads.

A pair goes through these steps, from the tar to the batch. What a step keeps between pairs is its
state; everything else follows from (seed, epoch, index), so that a run can resume at any pair.

1. `index`     A folder, pattern or list of tars becomes arrays of where each pair's members lie.
               State: what a walk through foreign tars found, in a file beside them.
2. `sampler`   A position of the run's stream becomes (pass, index), by a keyed permutation.
               `balance` gives groups shares, reads studies. State: one integer, what was consumed.
3. `shards`    An index becomes a `Sample`: the encoded image, the caption, the facts.
               State: a few open tars per process.
4. `augment`   The image becomes (3, H, W) uint8, cropped, turned and toned, or as open_clip does.
               State: none; each draw comes from a generator seeded with (seed, pass, index).
5. `dataset`   The caption becomes (L,) tokens; samples become loader batches, in worker processes,
               and those a batch per step. State: none; an unreadable pair is replaced by one that
               (seed, pass, index) names.
6. `loader`    Puts the steps together; the ranks agree whether they all have their batch, and count
               what was replaced. State: the counts and the names already told, which a run's
               checkpoint keeps.

`remote` takes the place of 1 to 3 for shards behind URLs and commands, which webdataset reads front
to back; its state is the position of each lane of shards.
"""
