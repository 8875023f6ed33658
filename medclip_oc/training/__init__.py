"""A run, from its configuration to its last checkpoint, and the checks before it.

1. `resume` looks into the run folder (`run_dir`): a new run, or the state that this one continues.
2. `build` makes data, plan, model and cached step; `optimizer` the groups and their rates.
3. `checkpointer` puts optimizer, data, adapters, averages and random numbers where they stood.
4. `trainer` takes a step over each global batch; `logger` writes its loss, rate and speed.
5. Where it is due, `validation` measures retrieval; the best model, or the start, is best.pt.
6. Where it is due, or a signal came, `checkpointer` captures all of it and writes it.
7. After the last step `validation` says what best.pt gained over the start, and saves wise.pt.

Before a run, `preflight` (`--doctor`) looks for what would make it fail or be wasted, `lr_range`
(`--lr-range`) tries rates, `gradcheck` (`--selfcheck`) compares a cached step with one big batch.
"""
