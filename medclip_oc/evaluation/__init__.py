"""Features of many pairs to figures.

`sources` opens what is evaluated; `features` embeds every pair once, each rank its share; `ranks`
counts who comes before the right candidate, on all ranks together; `retrieval` puts the record
together from `metrics` (who is right for whom, recall, median rank, ...), `bootstrap` (intervals)
and `concepts` (relevance by UMLS concepts, from `top_k`). `classification` judges what
tells one class of an image, `findings` what tells several; `probes` learns from labelled features.
"""
